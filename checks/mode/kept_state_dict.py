"""MODE107: whether a state dict that is kept is a copy."""

from __future__ import annotations

from typing import Any

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.measure.kept_network import KeptNetwork
from nnaudit.probes.kept_states import Assignment, KeptNetworks, KeptState, KeptStates
from nnaudit.report import Kind, Result
from nnaudit.wording import count


class KeptStateDict(Check):
    """Is a state dict that is kept a copy of the weights?

    Why: `state_dict()` returns the parameters themselves, not copies. `best = model.state_dict()`
        keeps a reference: the next optimizer step changes what it holds, and the weights that are
        loaded or saved at the end as the best are the last ones.
    How: Watches every `state_dict()` call of the program while it trains across the end of two
        epochs, validation included, without holding what was returned. A state dict that is alive
        after one more step, and whose tensors changed in that step, is a reference.
        - Fails when the source keeps it under a condition (`if score > best:`) and loads, saves or
          returns it outside of that condition.
        - Warns when no such use is found in the file, and the name contains "best".
        - Fails when the source keeps the network itself (`best_model = model`) under a condition in
          a loop that goes on training it, and reads that name later; warns where nothing reads it.
          A network that the loop makes anew, for each fold or setting, passes.
        - Where the program makes its batches itself, a few steps are watched in place of an
          epoch's end.
        - One that is saved at once, or that is kept in every epoch, passes.
    Fix: `best = copy.deepcopy(model.state_dict())`.
    References: PyTorch documentation, "Saving and Loading Models": a note on deepcopy of the best
        state_dict.
    """

    code, name, kind = "MODE107", "kept-state-dict", Kind.EXACT
    needs = (Needs.OWN_STEPS,)
    probes = (KeptStates, KeptNetworks)

    def run(self, audit: Audit) -> Result:
        """Judge the state dicts that were kept."""
        states = audit.probe(KeptStates)
        for network in audit.probe(KeptNetworks):
            return self._same_network(network)
        if states is None:
            return self.skipped(
                "No state_dict() was called between steps."
                if audit.loop.makes_batches
                else "The end of an epoch, where weights are kept, cannot be reached."
            )
        for state in states:
            if state.kept is not None and state.kept.used:
                return self._reference(state, state.kept)
        for state in states:
            if state.kept is not None and "best" in state.kept.name.lower():
                return self._unused(state, state.kept)
        return self.passed("No state dict is kept by reference from one epoch to the next.")

    def _same_network(self, kept: KeptNetwork) -> Result:
        details: dict[str, Any] = {
            "measured": f"{kept.name} is {kept.network}",
            "threshold": "a copy",
            "location": kept.location,
            "fix": f"{kept.name} = copy.deepcopy({kept.network})",
        }
        what = (
            f"{kept.name} is no copy of the network, but {kept.network} by a second name: it "
            "changes with every training step."
        )
        if kept.used:
            return self.failed(f"{what} Line {kept.used} uses the latest weights.", **details)
        return self.warned(what, **details)

    def _reference(self, state: KeptState, kept: Assignment) -> Result:
        return self.failed(
            f"{kept.name} is not a copy: {_changed(state)} changed in the next training step. "
            f"Line {kept.used} uses the latest weights, not those that were kept.",
            **_details(state, kept),
        )

    def _unused(self, state: KeptState, kept: Assignment) -> Result:
        return self.warned(
            f"{kept.name} is not a copy: {_changed(state)} changed in the next training step.",
            **_details(state, kept),
        )


def _changed(state: KeptState) -> str:
    return f"{state.changed} of its {count(state.tensors, 'tensor')}"


def _details(state: KeptState, kept: Assignment) -> dict[str, Any]:
    return {
        "measured": f"{state.changed} of {count(state.tensors, 'tensor')} changed",
        "threshold": "none",
        "location": state.location,
        "fix": f"{kept.name} = copy.deepcopy(model.state_dict())",
    }
