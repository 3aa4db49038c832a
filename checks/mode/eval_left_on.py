"""MODE109: whether eval mode is left on in the middle of an epoch."""

from __future__ import annotations

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.training_run import TrainingRun
from nnaudit.report import Kind, Result
from nnaudit.wording import count

_STRETCH = 3


class EvalModeLeftOn(Check):
    """Does the network stay in train mode for a whole epoch of training?

    Why: A validation, a `generate()` or a callback every few hundred steps calls `model.eval()`,
        and the `model.train()` at the beginning of the epoch is long past. Until the epoch ends,
        dropout is off and batch normalisation neither uses nor updates the batch's statistics. The
        first steps, and the first of the next epoch, look right.
    How: Reads the mode at every call with gradients enabled, in the training run that other checks
        share (some hundred steps). A step counts when the network, and every module in it to which
        the mode matters (dropout, batch normalisation, a forward that reads it), was in eval mode
        in all its calls.
        - Fails when the first step of the epoch was in train mode, and three or more consecutive
          steps of the same epoch were in eval mode.
        - Single steps in eval mode (pseudo-labels), and normalisation frozen on its own while the
          network is in train mode, pass.
        - All steps count where the program makes its batches itself: it has no epochs to go by.
        - Skipped when the first step is in eval mode already (MODE101).
    Fix: Call `model.train()` after every validation, not only at the beginning of an epoch.
    References: PyTorch documentation, Autograd mechanics, "Evaluation mode".
    """

    code, name, kind = "MODE109", "eval-left-on", Kind.EXACT
    needs = (Needs.OWN_STEPS,)
    probes = (TrainingRun,)
    trains = True

    def run(self, audit: Audit) -> Result:
        """Look for stretches of the first epoch in eval mode."""
        training = audit.probe(TrainingRun)
        # Batches of the program's own come in no epochs.
        steps = len(training.losses if audit.loop.makes_batches else training.first_epoch)
        asleep = [step for step in training.asleep if step < steps]
        if asleep and asleep[0] == 0:
            return self.skipped("The first step is in eval mode already: see MODE101.")
        stretch = _first_stretch(asleep)
        if not stretch:
            return self.passed(f"The network is in train mode in {count(steps, 'step')}.")
        return self.failed(
            f"The network is left in eval mode in the middle of an epoch: from step {stretch[0]} "
            f"on, in {len(asleep)} of {count(steps, 'step')}, dropout and batch normalisation did "
            "not train.",
            measured=f"{len(asleep)} of {count(steps, 'step')} in eval mode",
            threshold="none",
            location=audit.loop.locate("training_step") or audit.loop.locate("model"),
            fix="model.train()  # after every validation, also in the middle of an epoch",
        )


def _first_stretch(steps: list[int]) -> list[int]:
    """Return the first run of at least :data:`_STRETCH` consecutive numbers; empty without."""
    run: list[int] = []
    for step in steps:
        if run and step != run[-1] + 1:
            if len(run) >= _STRETCH:
                return run
            run = []
        run.append(step)
    return run if len(run) >= _STRETCH else []
