"""Which tokens of the training texts are targets, and at what distance from the inputs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop
from nnaudit.loop.losses import LossCall
from nnaudit.measure.label_shift import LabelShift, label_shift
from nnaudit.probes.first_steps import First, FirstSteps
from nnaudit.probes.padding import pad_ids_of, padding_of_batch
from nnaudit.targets import batch as batches
from nnaudit.targets.model_inputs import ModelInputs

BATCHES = 64
SECONDS = 3.0

OFFSETS = range(5)
"""Distances at which a target is looked for among the inputs: it is to be the next token."""

_OWN = 0.9
"""Labels that are found among the tokens: the last one of a text may be left out of these."""

_USUAL = 0.9
"""A token that ends so many of the texts is their end."""

_FEWEST = 64
"""Targets of which an offset can be told: as many equal by chance among few kinds of tokens."""

_TABLED = 100_000
"""Tokens of which a table of labels is made: more take seconds."""


@dataclass(frozen=True)
class Placed:
    """What a loss makes of content and of padding, in one step.

    Attributes:
        content: tokens that are no padding; 0 where nothing says which are.
        left_out: those of them whose label is the loss's ignore_index and a class of the network.
        padded: the share of the targets that stand at padding.
    """

    content: int = 0
    left_out: int = 0
    padded: float = 0.0

    @classmethod
    def of(cls, target: Tensor, valid: Tensor, ignored: int, classes: int) -> Placed:
        """Count the labels of ``target`` where ``valid`` (N, T) says content, and elsewhere.

        ``target`` is ``(N, T)`` or flattened; of another size, as where only some places get into
        the loss, nothing can be said. Nor can it where padding has several labels: they are of
        another text, as in translation. Such a one may also be shorter, so that what is left out at
        the end of a row is no label of a token.
        """
        if target.numel() != valid.numel() or target.is_floating_point():
            return cls()
        labels = target.reshape(valid.shape)
        filling = labels[~valid]
        if bool((filling != filling[:1]).any()):
            return cls()
        counted = labels != ignored
        within = valid & counted.flip(1).cummax(1).values.flip(1)
        left_out = int((within & ~counted).sum()) if 0 <= ignored < classes else 0
        padded = float((counted & ~valid).sum()) / max(int(counted.sum()), 1)
        return cls(int(valid.sum()), left_out, padded)


@dataclass(frozen=True)
class TokenTargets:
    """What the labels of some batches of texts say.

    Attributes:
        rows: how many texts were read.
        unsupervised: those none of whose tokens is a target.
        batches: how many batches were read.
        empty: those without any target.
        ended: padded texts whose last real token is the one that ends nine in ten of them, or all
            of whose padding it fills.
        unlearnt: those of them in which that token is no target, while the one before is.
        end: that token; ``padding`` is the one that fills the padding.
        share: the share of the real tokens that are targets.
        own: the labels are the texts' own tokens, as in language modelling.
        offsets: by loss call of the first step, how many tokens ahead its targets are; calls of
            which that cannot be told are left out.
        filled: the share of the first step's targets that only fill rows up to one length.
        placed: where the first step's targets stand.
    """

    rows: int
    unsupervised: int
    batches: int
    empty: int
    ended: int
    unlearnt: int
    padding: int
    own: bool
    offsets: tuple[int, ...]
    end: int = -1
    share: float = 1.0
    shift: LabelShift | None = None
    filled: float = 0.0
    placed: Placed = Placed()


class TokenTargeting(Probe[TokenTargets | None]):
    """Reads the labels of some batches, and the targets that reached the loss in the first step."""

    probes = (FirstSteps,)

    def measure(self, audit: Audit) -> TokenTargets | None:
        """Return None where the inputs are no token ids with a label for each.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        first = audit.probe(FirstSteps)
        calls = first.observations[0].loss_calls if first.observations else []
        ignored = next((c.arguments["ignore_index"] for c in calls if _has_ignored(c)), None)
        counts = _Counts(-100 if ignored is None else int(ignored))
        started = time.perf_counter()
        for batch in islice(audit.loop.batches(), BATCHES):
            audit.clock.check()
            found = _texts(audit.loop, batch, counts.ignored)
            if found is None:
                break
            counts.add(*found)
            if time.perf_counter() - started > SECONDS:
                break
        offsets = tuple(_offsets(audit.loop, first, calls))
        if not counts.rows and not offsets:
            return None
        end, ended, unlearnt = counts.ends()
        return TokenTargets(
            counts.rows, counts.unsupervised, counts.batches, counts.empty, ended, unlearnt,
            counts.padding, counts.own, offsets, end, counts.targets / max(counts.tokens, 1),
            None if counts.own else label_shift(counts.texts, counts.ignored),
            max(_filled(audit.loop, first, calls), default=0.0),
            _placed(audit.loop, first, calls),
        )  # fmt: skip


def _has_ignored(call: LossCall) -> bool:
    return call.kind in ("cross_entropy", "nll") and "ignore_index" in call.arguments


@dataclass
class _Counts:
    ignored: int
    rows: int = 0
    unsupervised: int = 0
    batches: int = 0
    empty: int = 0
    last: list[tuple[int, int, bool, bool]] = field(default_factory=list)
    """Of each padded text: its last token, the one before, and whether the first is no target and
    the second is one: with labels in the tokens' own places, and with the tokens to follow."""
    padding: int = -1
    tokens: int = 0
    targets: int = 0
    same: int = 0
    following: int = 0
    texts: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def own(self) -> bool:
        """Whether the labels are the tokens at their own places, or the ones that follow."""
        return max(self.same, self.following) >= _OWN * max(self.targets, 1)

    def add(self, ids: Tensor, labels: Tensor, mask: Tensor | None) -> None:
        """Count one batch of texts, of shape ``(N, T)`` each."""
        valid = labels != self.ignored
        if sum(known.numel() for known, _ in self.texts) < _TABLED:
            self.texts.append((ids, labels))
        self.rows += len(ids)
        self.unsupervised += int((~valid.any(1)).sum())
        self.batches += 1
        self.empty += not bool(valid.any())
        self.tokens += int(mask.sum()) if mask is not None else ids.numel()
        self.targets += int(valid.sum())
        self.same += int((valid & (labels == ids)).sum())
        self.following += int((valid[:, :-1] & (labels[:, :-1] == ids[:, 1:])).sum())
        if mask is not None:
            self._add_ends(ids, valid, mask.bool())

    def _add_ends(self, ids: Tensor, valid: Tensor, mask: Tensor) -> None:
        filling = ids[~mask]
        if not filling.numel() or bool((filling != filling[0]).any()):
            return
        self.padding = int(filling[0])
        last = (mask * torch.arange(ids.shape[1], device=ids.device)).amax(1)
        rows = torch.arange(len(ids), device=ids.device)
        silent = [
            ~valid[rows, (last - ahead).clamp(min=0)] & valid[rows, (last - ahead - 1).clamp(min=0)]
            for ahead in (0, 1)
        ]
        padded = (~mask).any(1) & (mask.sum(1) > 2)
        columns = (ids[rows, last], ids[rows, (last - 1).clamp(min=0)], *silent)
        found = zip(*(column.tolist() for column in columns), strict=True)
        self.last += [each for each, counts in zip(found, padded.tolist(), strict=True) if counts]

    def ends(self) -> tuple[int, int, int]:
        """Return the token that ends texts, how many it ends, and in how many it is no target.

        A line break that closes every text after its end is no such token.
        """
        end, before = (_usual([row[place] for row in self.last]) for place in (0, 1))
        if end is None or before is not None:
            end = self.padding
        ended = [silent for token, _, *silent in self.last if token == end]
        ahead = int(self.following > self.same)
        return end, len(ended), sum(silent[ahead] for silent in ended)


def _usual(tokens: list[int]) -> int | None:
    """Return the token that nine in ten of ``tokens`` are; None for none."""
    token, found = next(iter(Counter(tokens).most_common(1)), (0, 0))
    return token if found and found >= _USUAL * len(tokens) else None


def _taken_apart(loop: Loop, batch: Any) -> ModelInputs | None:
    try:
        return loop.split_batch(batch)
    except UserCodeError:
        return None


def _ids_of(fed: ModelInputs) -> Tensor | None:
    """Return the token ids, of shape ``(N, T)``, that the model is given."""
    whole = [t for _, t in batches.tensors((fed.args, fed.kwargs)) if _is_ids(t)]
    named = fed.kwargs.get("input_ids")
    return named if isinstance(named, Tensor) and _is_ids(named) else next(iter(whole), None)


def _is_ids(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.int64, torch.int32) and tensor.ndim == 2 and tensor.shape[1] > 1


def _texts(loop: Loop, batch: Any, ignored: int) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Return ids, labels and the mask of a batch of texts with a label for each token."""
    fed = _taken_apart(loop, batch)
    ids = _ids_of(fed) if fed is not None else None
    if fed is None or ids is None:
        return None
    named = [(str(path).lower(), tensor) for path, tensor in batches.tensors(batch)]
    # The batch's own labels, where they are: those that reach the loss may be cut and flattened.
    given = [(path, t) for path, t in named if _is_ids(t) and t.shape == ids.shape]
    said = (t for path, t in given if "label" in path)
    left_out = (t for _, t in given if (t == ignored).any() and not batches.same_values(t, ids))
    labels = next(chain(said, left_out), fed.target)
    if not isinstance(labels, Tensor) or labels.shape != ids.shape or labels.is_floating_point():
        return None
    masks = [t for path, t in named if t.shape == ids.shape and "mask" in path]
    return ids.cpu(), labels.cpu(), masks[0].cpu() if masks else None


def _offsets(loop: Loop, first: First, calls: list[LossCall]) -> Iterator[int]:
    if not first.batches:
        return
    fed = _taken_apart(loop, first.batches[0])
    ids = _ids_of(fed) if fed is not None else None
    if ids is None:
        return
    for call in calls:
        if call.kind in ("cross_entropy", "nll") and call.compares:
            offset = offset_of(ids.cpu(), call.target.cpu(), call.arguments.get("ignore_index"))
            if offset is not None:
                yield offset


def _filled(loop: Loop, first: First, calls: list[LossCall]) -> Iterator[float]:
    fed = _taken_apart(loop, first.batches[0]) if first.batches else None
    ids = _ids_of(fed) if fed is not None else None
    for call in calls if ids is not None else ():
        if _has_ignored(call) and call.reduction in ("mean", "sum") and call.compares:
            weight = call.arguments.get("weight")
            if weight is None and ids is not None:
                yield filled_share(call.target.cpu(), len(ids), call.arguments["ignore_index"])


def _placed(loop: Loop, first: First, calls: list[LossCall]) -> Placed:
    """Return what the first loss over classes makes of content and padding, where both are known.

    Weights by hand may leave out what the loss function does not.
    """
    batch = first.batches[0] if first.batches else None
    padding = padding_of_batch(batch, pad_ids_of(loop.model)) if batch is not None else None
    for call in calls if padding is not None else ():
        if padding is None or not _has_ignored(call) or not call.compares:
            continue
        if call.reduction in ("mean", "sum") and call.input.ndim > 1:
            ignored = int(call.arguments["ignore_index"])
            return Placed.of(call.target.cpu(), padding.valid, ignored, call.input.shape[1])
    return Placed()


def filled_share(target: Tensor, rows: int, ignored: Any) -> float:
    """Return the share of targets that repeat the last token of their row up to its end.

    ``target`` is ``(N, T)`` of ``rows`` texts, or flattened. 0 unless half of the rows end with two
    or more of one and the same token, which stands nowhere else, and begin to at three places or
    more. The first in each row may be its end, and is not counted.
    """
    whole = target.dtype in (torch.int64, torch.int32)
    if not whole or not rows or not target.numel() or target.numel() % rows:
        return 0.0
    table = target.reshape(rows, -1)
    token = int(table[:, -1].mode().values)
    tail = (table == token).flip(1).cumprod(1).flip(1)
    lengths = tail.sum(1)
    padded = lengths[lengths > 1]
    elsewhere = bool(((table == token) & (tail == 0)).any())
    if token == ignored or elsewhere or 2 * len(padded) < rows or len(torch.unique(padded)) < 3:
        return 0.0
    valid = table != ignored if ignored is not None else torch.ones_like(table, dtype=torch.bool)
    return float((padded - 1).sum()) / max(int(valid.sum()), 1)


def offset_of(ids: Tensor, target: Tensor, ignored: Any) -> int | None:
    """Return how many tokens after the input the ``target`` at each place is.

    ``target`` is in the order of the texts, ``(N, T')`` or flattened, ``T'`` at most ``T`` of
    ``ids``: what follows the first token comes first. None where no one distance of up to four
    explains all targets, several do, or there are too few.
    """
    rows, length = ids.shape
    if target.is_floating_point() or target.numel() % rows:
        return None
    target = target.reshape(rows, -1)
    width = target.shape[1]
    if not 0 < width <= length:
        return None
    valid = target != ignored if ignored is not None else torch.ones_like(target, dtype=torch.bool)
    fits = []
    for offset in OFFSETS:
        shared = min(width, length - offset)
        if shared <= 0:
            continue
        seen = valid[:, :shared]
        equal = target[:, :shared] == ids[:, offset : offset + shared]
        if int(seen.sum()) >= _FEWEST and bool(equal[seen].all()):
            fits.append(offset)
    return fits[0] if len(fits) == 1 else None
