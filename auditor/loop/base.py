"""The interface between a user's training and everything that asks about it.

No probe and no check knows which implementation it runs on. What an implementation cannot offer
it says through :meth:`Loop.lacks`, and a check that needs it is skipped with that reason.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from torch import nn

from nnaudit.loop.losses import LossCall
from nnaudit.loop.observation import Observation
from nnaudit.report import Location, TargetInfo
from nnaudit.state.snapshot import Subjects
from nnaudit.targets.metrics import Metric
from nnaudit.targets.model_inputs import ModelInputs


class Needs(StrEnum):
    """What a check may need of a loop."""

    TRAIN_LOADER = "a training loader"
    ITEMS = "a loader, which asks for items"
    VAL_LOADER = "a validation loader"
    OWN_BATCHES = "training batches, whoever makes them"
    SAME_BATCH = "a training batch that can be had twice"
    STEPS = "training steps"
    OWN_STEPS = "training steps, on whatever batches"
    UPDATES = "an optimizer that steps, whatever gradient it has"
    TARGETS = "targets beside the inputs"
    OPTIMIZER = "an optimizer of the user's own"
    FRESH_RUN = "a way to start the run anew"
    WIDTH = "a width argument of build_model"
    RANKS = "several processes"


@dataclass(frozen=True)
class Step:
    """One optimizer step that really happened.

    Attributes:
        loss: the loss before the update, as the user's code computed it.
        lr: the learning rate of every parameter group of every optimizer.
        seconds: from handing over the batch to the end of the step, device synchronised.
        observation: what the taps saw, when the step was taken with ``observe=True``.
        handed: how many batches the user's code took for it: several, where it accumulates.
    """

    loss: float
    lr: tuple[float, ...]
    seconds: float
    observation: Observation | None = None
    handed: int = 1


@dataclass(frozen=True)
class Forward:
    """One forward pass without an update.

    Attributes:
        output: whatever the model returned, detached.
        loss: the loss of ``output``; None where the loop has no way to compute it.
        loss_calls: the torch loss functions called on the way.
    """

    output: Any
    loss: float | None
    loss_calls: tuple[LossCall, ...] = ()

    @property
    def observation(self) -> Observation:
        """What was seen of it, as of a step."""
        return Observation(
            loss_calls=list(self.loss_calls), output=self.output, total_loss=self.loss
        )


class Loop(ABC):
    """A run of the user's training, ready to take real steps.

    The runner restores the state of :attr:`subjects` after every probe and every check, so these
    may train, change modes and draw random numbers as they like.

    Attributes:
        name: how reports call the target.
        device: where the model is.
        model: the network under audit (the main one, where there are several).
        models, optimizers, schedulers: all there are, ``model`` first.
        train_loader, val_loader: as the user made them; ``val_loader`` may be None.
        steps_taken: optimizer steps since the audit began, relaunched runs included.
        handed_over_in_eval: the model was in eval mode, and the loop put it into train mode.
        epoch_per_step: gradients are summed over the whole epoch before the optimizer steps.
        planned_epochs: what the user's own loop calls its number of epochs; 0 when unknown.
        counted_epochs: how often the user's own loop goes through the loader, at the most; 0 unless
            certain.
        counted_batches: of an epoch, where no loader says how many there are; 0 unless certain.
        runs_whole: the user's own loop leaves off early neither in an epoch nor between two.
        starting: the program is on its way to its training loop, for the first time or again.
        metrics: the user's own, where some were found.
        makes_batches: the program makes its batches in its steps; they come from no loader.
        rates_rise: the learning rate is raised step by step, to a height that is not known.
        never_steps: the user's own loop back-propagates, and its optimizer takes no step: what is
            driven is the user's parts, in a loop of nnaudit's.
    """

    name: str
    device: torch.device
    model: nn.Module
    models: tuple[nn.Module, ...]
    optimizers: tuple[torch.optim.Optimizer, ...]
    schedulers: tuple[Any, ...]
    train_loader: Any
    val_loader: Any
    steps_taken: int
    handed_over_in_eval: bool = False
    epoch_per_step: bool = False
    planned_epochs: int = 0
    counted_epochs: int = 0
    counted_batches: int = 0
    runs_whole: bool = False
    starting: bool = False
    makes_batches: bool = False
    rates_rise: bool = False
    never_steps: bool = False
    metrics: tuple[Metric, ...] = ()

    @abstractmethod
    def bounded(self, allow: Callable[[], None]) -> AbstractContextManager[None]:
        """Call ``allow`` before each step or forward pass for the time of a ``with``.

        Also of runs relaunched from this one. It raises when the time of the audit is used up.
        """

    @property
    @abstractmethod
    def subjects(self) -> Subjects:
        """Everything a step may change, for a Snapshot."""

    @abstractmethod
    def lacks(self, need: Needs) -> str:
        """Return why ``need`` is not offered, or an empty string when it is."""

    @abstractmethod
    def batches(self) -> Iterator[Any]:
        """Start one epoch: yield the training loader's batches as it makes them, on its device."""

    @abstractmethod
    def val_batches(self) -> Iterator[Any]:
        """Yield the validation loader's batches as it makes them."""

    @abstractmethod
    def split_batch(self, batch: Any) -> ModelInputs:
        """Take ``batch`` apart: what the model is called with, and the target. Stays on its device.

        Raises:
            UserCodeError: the model cannot be called with this batch.
        """

    def called_with(self, batch: Any) -> ModelInputs:
        """Return what the training really calls the model with for ``batch``, and the target.

        :meth:`feed` takes a batch apart; the user's own step may do more with it on the way.

        Raises:
            UserCodeError: that could not be found out.
        """
        return self.split_batch(batch)

    def validation_modes(self) -> dict[str, bool]:
        """Return, by module name, which were in train mode when the user's code validated.

        Of a loop that validates on rows that come from no loader; empty where that was not seen.
        """
        return {}

    def prepare(self, batch: Any) -> None:
        """Get ready for a step on ``batch``, by steps that are undone where it takes some."""
        return

    @abstractmethod
    def step(self, batch: Any, *, observe: bool = False, losses: bool = False) -> Step:
        """Do the user's whole training step on ``batch``: forward, loss, backward, update.

        With ``observe`` the step's observation holds all that the taps see, which may cost as much
        as another step; with ``losses`` the calls of loss functions and the model's output only.

        Raises:
            UserCodeError: the user's code raised; what the taps saw until then is its
                ``observation`` attribute when ``observe`` was set.
        """

    def next_epoch(self, batch: Any) -> Step | None:
        """End the epoch, let the user's code do what it does between two, and step on ``batch``.

        The step is observed. None where nothing of the user's runs between epochs, or it cannot be
        reached.
        """
        return None

    @abstractmethod
    def forward(self, batch: Any, *, train: bool = False) -> Forward:
        """Run the model, and the loss where possible, without gradient or update.

        ``train`` chooses the mode; the modes of all modules are put back afterwards.
        """

    @abstractmethod
    def relaunched(
        self, seed: int, *, width: float = 1.0, keeps_files: bool = False
    ) -> AbstractContextManager[Loop]:
        """Start the same run anew under ``seed``, beside this one, for the time of a ``with``.

        Everything is made again as the user's code makes it: model, data, loader, optimizer.
        ``width`` scales the hidden layers where :attr:`Needs.WIDTH` is offered. With
        ``keeps_files`` a script finds what it has written so far, checkpoints among it; else its
        files are as they were at first.

        Raises:
            UserCodeError: the user's code raised.
        """

    @abstractmethod
    def info(self) -> TargetInfo:
        """Say what was found, how, and what each gap disables."""

    @abstractmethod
    def locate(self, thing: Any) -> Location | None:
        """Return the line of the user's source that made ``thing`` (a module, loader, ...)."""


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators, on every device, as users do."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
