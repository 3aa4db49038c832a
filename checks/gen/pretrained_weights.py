"""GEN103: whether loaded weights are in the network when training begins."""

from __future__ import annotations

from collections import Counter
from typing import Any

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.loaded_weights import LoadedWeights, Loading, Provenance, Read
from nnaudit.report import Kind, Result, Table

FEW = 0.5
"""A checkpoint of which less than this is loaded, while tensors of the same shapes stay empty, has
not been loaded. Where more is loaded, but not all, it is a warning: a few blocks may be left out on
purpose, but hardly with a tensor of the same shape left empty for each of them."""

_CERTAIN = 2
"""Tensors whose names differ by a part that is put in or left out: one may be by chance."""

LOST = 0.9
"""Share of the loaded weights that must have been overwritten for a failure: initialising the upper
layers anew is a way to fine-tune, initialising all of them is not."""


class PretrainedWeights(Check):
    """Are the weights that the program loads in the network when training begins?

    Why: load_state_dict(strict=False) raises no error when not one name fits, and an initialisation
        that runs after it undoes it. The network then trains from scratch: it learns, but worse.
    How: The program is built once more, under another seed, while calls of torch.load, safetensors
        and load_state_dict are recorded. The weight tensors read (two dimensions or more) are
        compared exactly with those in the network when training begins. It fails in four cases: a
        state dict that holds weights gives none to its module; less than half of it is loaded, and
        the rest fits the shapes of tensors that stayed empty, or two tensors that were not loaded
        and two that stayed empty have one shape and one name but for a part that is put in
        (`q.weight`, `q.base.weight`); 90% or more of what was loaded has another value, unrelated
        to the loaded one (correlation below 0.2); no network holds any of the weights of a file
        that was read, while all of the network's weights change with the seed.
        - Shrunk, averaged or merged weights are still related to the loaded ones.
        - It warns where a download failed and the program went on.
        - It warns where a call with pretrained=True, under no condition, reads no file and all
          weights change with the seed: the argument may be ignored.
        - New heads, adapters, teachers and truncated networks have missing or unexpected names too,
          but not both with the same shapes.
    Fix: print(model.load_state_dict(state, strict=False)) shows missing and unexpected keys: rename
        the keys of the state dict until both lists hold only what you expect.
    References: torch.nn.Module.load_state_dict; Yosinski et al., How transferable are features in
        deep neural networks? (NeurIPS 2014).
    """

    code, name, kind = "GEN103", "pretrained-weights", Kind.EXACT
    needs = (Needs.FRESH_RUN,)
    probes = (LoadedWeights,)

    def run(self, audit: Audit) -> Result:
        """Look at each load, then at what is left of all of them."""
        seen = audit.probe(LoadedWeights)
        findings = (
            *(self._not_loaded(loading) for loading in _final(seen.loadings)),
            self._overwritten(seen),
            self._never_loaded(seen),
            self._not_downloaded(seen),
            self._not_kept(seen),
        )
        for finding in findings:
            if finding is not None:
                return finding
        if seen.pretrained:
            return self.passed(
                f"{len(seen.fate.held)} loaded weight tensors are in the network when training "
                "begins."
            )
        if seen.loadings:
            return self.skipped("Weights are loaded into other networks only.")
        return self.skipped("No weights are loaded while the program is built.")

    def _not_loaded(self, loading: Loading) -> Result | None:
        misnamed = loading.misnamed()
        weights = len(loading.taken) + len(loading.missing)
        if not loading.unexpected or not weights:
            return None
        name = type(loading.module).__name__
        details: dict[str, Any] = {
            "fix": _renaming(loading),
            "location": loading.location,
            "module": name,
            "evidence": (_names(loading),),
        }
        arrived = f"{len(loading.taken)} of {loading.offered}"
        if not loading.taken:
            return self.failed(
                f"None of the {loading.offered} weight tensors in the state dict has a name that "
                f"{name} knows: with strict=False nothing was loaded, without an error.",
                measured=f"{arrived} weight tensors loaded",
                threshold="all but a new head",
                **details,
            )
        if len(misnamed) < 2:
            return None
        lost = _numel(misnamed)
        share = lost / (lost + sum(t.numel() for _, t in loading.taken.values()))
        message = (
            f"Only {arrived} weight tensors of the state dict were loaded into {name}. "
            f"{len(misnamed)} others ({100 * share:.0f}% of the parameters) have the shapes, but "
            "not the names, of parameters that kept their initial values."
        )
        details |= {
            "measured": f"{100 * share:.0f}% not loaded",
            "threshold": f"{100 * FEW:.0f}%",
        }
        inserted = len(renamed(misnamed, loading.missing))
        if share > FEW or inserted >= _CERTAIN:
            return self.failed(message, **details)
        return self.warned(message, **details)

    def _overwritten(self, seen: Provenance) -> Result | None:
        lost, held = seen.fate.overwritten, seen.fate.held
        if len(lost) < 2 or len(lost) < LOST * (len(lost) + len(held)):
            return None
        last = next(load for load in reversed(seen.loadings) if set(lost) & load.taken.keys())
        return self.failed(
            f"{len(lost)} of {len(lost) + len(held)} loaded weight tensors have other, unrelated "
            "values when training begins: the network is initialised again after loading.",
            measured=f"{len(lost)} of {len(lost) + len(held)} overwritten",
            threshold=f"less than {100 * LOST:.0f}%",
            location=last.location,
            fix="initialise first and call model.load_state_dict(state) last",
            evidence=(
                Table(
                    title="Loaded, then overwritten",
                    columns=("parameter",),
                    rows=tuple((name,) for name in lost[:12]),
                ),
            ),
        )

    def _never_loaded(self, seen: Provenance) -> Result | None:
        """A file of weights was read, yet all weights are random."""
        if not seen.unused or not seen.random or not all(seen.random.values()):
            return None
        if len(seen.unused) < len(seen.reads) or any(load.changed for load in seen.loadings):
            return None
        read: Read = seen.unused[0]
        return self.failed(
            f"{read.file} was read, but none of its {len(read.weights)} weight tensors is in a "
            f"network: all {len(seen.random)} weight tensors of the model are random (they change "
            "with the seed).",
            measured=f"0 of {len(read.weights)} weight tensors in use",
            threshold="all but a new head",
            location=read.location,
            fix="call model.load_state_dict(state); if the state dict is filtered by names or "
            "shapes first, print what is left of it",
            evidence=(
                Table(
                    title="In the file and in the network",
                    columns=("file", "network"),
                    rows=tuple(zip(list(read.weights)[:8], list(seen.random)[:8], strict=False)),
                ),
            ),
        )

    def _not_downloaded(self, seen: Provenance) -> Result | None:
        if not seen.failed_downloads or seen.pretrained:
            return None
        error, where = seen.failed_downloads[0]
        return self.warned(
            f"The download of pretrained weights failed ({error}), and the program trains from "
            "random weights instead.",
            location=where,
            fix="let the error stop the program, or download the file beforehand",
        )

    def _not_kept(self, seen: Provenance) -> Result | None:
        """The source asks for pretrained weights, and the function called ignores it."""
        if not seen.promised or not seen.random or not all(seen.random.values()):
            return None
        if seen.reads or seen.loadings or seen.published:
            return None
        where = seen.promised[0]
        return self.warned(
            f"Line {where.line} asks for pretrained weights, but no file of weights is read, and "
            f"all {len(seen.random)} weight tensors of the model are random (they change with the "
            "seed).",
            measured="no weights read",
            threshold="the weights that were asked for",
            location=where,
            fix="call model.load_state_dict(torch.load(path)) in the function that takes the "
            "argument, or pass pretrained=False if random weights are intended",
        )


def _final(loadings: tuple[Loading, ...]) -> list[Loading]:
    """Leave out attempts that were followed by another load into the same module."""
    return [
        loading
        for i, loading in enumerate(loadings)
        if not any(later.module is loading.module and later.taken for later in loadings[i + 1 :])
    ]


def _numel(tensors: dict[str, Any]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _names(loading: Loading) -> Table:
    offered, own = list(loading.unexpected)[:8], list(loading.missing)[:8]
    longest = max(len(offered), len(own))
    offered += [""] * (longest - len(offered))
    own += [""] * (longest - len(own))
    return Table(
        title="Names that do not match",
        columns=("in the state dict", "in the network"),
        rows=tuple(zip(offered, own, strict=True)),
    )


def _renaming(loading: Loading) -> str:
    """Return the line that makes the names match, where they differ in a prefix only."""
    prefix = _common_prefix(loading.unexpected, loading.missing)
    if prefix:
        return f'state = {{k.removeprefix("{prefix}"): v for k, v in state.items()}}'
    prefix = _common_prefix(loading.missing, loading.unexpected)
    if prefix:
        return f'state = {{f"{prefix}{{k}}": v for k, v in state.items()}}'
    return "rename the keys of the state dict to the network's names before load_state_dict(state)"


def renamed(offered: dict[str, Any], missing: dict[str, Any]) -> list[str]:
    """Return what was offered under the name of a missing one but for parts put in or left out.

    ``attn.q.weight`` and ``attn.q.base.weight``: the layer was wrapped before it was loaded.
    """
    return [
        name
        for name, tensor in offered.items()
        if any(
            tensor.shape == other.shape and (_is_within(name, own) or _is_within(own, name))
            for own, other in missing.items()
        )
    ]


def _is_within(short: str, long: str) -> bool:
    """Whether the parts of one dotted name come in the other in the same order."""
    parts = iter(long.split("."))
    return all(part in parts for part in short.split("."))


def _common_prefix(longer: dict[str, Any], shorter: dict[str, Any]) -> str:
    """Return the beginning, at a dot, that most of ``longer`` have more than ``shorter``."""
    prefixes = Counter(
        name[: -len(other)]
        for name in longer
        for other in shorter
        if name.endswith(f".{other}") and longer[name].shape == shorter[other].shape
    )
    if not prefixes:
        return ""
    prefix, count = prefixes.most_common(1)[0]
    return prefix if count >= 0.5 * min(len(longer), len(shorter)) else ""
