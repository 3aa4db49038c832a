"""MODE105: whether a checkpoint restores the network and its training."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.errors import UserCodeError, describe
from nnaudit.loop.base import Loop, Needs, seed_everything
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.probes.resume_path import ResumePath, ResumePaths
from nnaudit.probes.resumed_run import ResumedRun, ResumedRuns
from nnaudit.report import Kind, Location, Result, Status, Table
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches
from nnaudit.targets.model_inputs import ModelInputs, has_forward
from nnaudit.training.checkpoint import Anatomy, anatomy, differing, is_tensorial, transplant
from nnaudit.training.evaluation import IN_PARTS, distance, evaluate, fed_to, rounding
from nnaudit.training.optimizers import strangers_of
from nnaudit.wording import count, verb

_STEPS = 3
_CLOSE = 1e-3
_OWN_RATE = (
    "The restored run takes its next step at another learning rate, which the program computes "
    "from a counter of its own."
)


@dataclass
class Original:
    """The run whose checkpoint was written.

    Attributes:
        saved: the checkpoint's bytes.
        network: the class of the network, by name.
        batch, fed: what the next step and the outputs are computed on.
        parts: what the model was made of when it was saved.
        trainable: requires_grad of its parameters then.
        transient: names of what a forward pass in eval mode changes: hidden states, caches.
        output, noise: of the model in eval mode, and the difference between two such.
        weights, after: before and after the next step.
        step_noise: the largest difference between two such steps, by parameter.
        gradients: norms of the next step's gradients, by parameter.
        optimizers: their state_dicts, as they were before saving.
        rates: the learning rates of the next step.
    """

    saved: bytes = b""
    network: str = ""
    batch: Any = None
    fed: ModelInputs = field(default_factory=lambda: ModelInputs((), {}, None))
    parts: Anatomy = field(default_factory=dict)
    trainable: dict[str, bool] = field(default_factory=dict)
    transient: list[str] = field(default_factory=list)
    output: Any = None
    noise: float = 0.0
    weights: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)
    step_noise: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, float] = field(default_factory=dict)
    optimizers: list[dict[str, Any]] = field(default_factory=list)
    rates: tuple[float, ...] = ()


class CheckpointRoundTrip(Check):
    """Does a checkpoint restore the network and its training?

    Why: What is not in the state_dict is lost without a message: random constants kept as plain
        tensors, non-persistent buffers, layers in a Python list, a flag that says whether something
        was initialised, an optimizer's own bookkeeping. The restored network differs, sometimes
        slightly, sometimes entirely.
    How: Writes the state_dicts of model and optimizer with `torch.save` after three steps, and
        loads them into the same program started anew with another seed. Then compares one batch's
        output in eval mode, and the weights after one further step with the same random numbers.
        The tolerance is ten times the difference of two identical computations, 64 roundings, and
        for the step a thousandth of the update.
        - Fails when copying over a tensor that differs removes the difference: the cause is then
          proven and named.
        - Fails when the state_dict cannot be saved or loaded, or when the optimizer's next step
          differs with equal gradients.
        - Warns when a counter or another plain number changes the next step only.
        - A script that writes a checkpoint with a count of epochs or steps is started again beside
          it. Where the new run has the weights that were written, it has resumed: it fails when an
          optimizer that had a state has none, or a scheduler that was stepped begins at 0.
        - Where that run does not resume by itself, it warns when the script does, by its source,
          without the state of its optimizer or scheduler: what torch.load returns sets the
          network's weights and the epoch that a `range` or a `while` begins with. Plain SGD has no
          state; a scheduler may be told `last_epoch`. It fails where the source takes that state,
          to save it, and never loads it, or loads it and makes the optimizer anew beside it; and
          where the branch that resumes makes the network anew after its optimizer was made.
        - A difference without a proven cause is inconclusive, and so is one where the optimizer
          trains tensors of its own: float32 copies of the weights, say.
        - Hidden states and caches, which a forward pass in eval mode changes, are copied over
          first: a resumed run starts without them. So is what is frozen by then: a program that
          thaws layers sets it by a count of its own.
    Fix: `self.register_buffer(name, tensor)` for constants and statistics; `nn.ModuleList` for
        layers; `get_extra_state` and `set_extra_state` for the rest.
    References: PyTorch documentation, "Saving and Loading Models", nn.Module.register_buffer and
        get_extra_state.
    """

    code, name, kind = "MODE105", "checkpoint-round-trip", Kind.EXACT
    needs = (Needs.OWN_STEPS, Needs.FRESH_RUN)
    probes = (ResumePaths, ResumedRuns)

    def run(self, audit: Audit) -> Result:
        """Save, start a fresh run, load, compare."""
        if not has_forward(audit.loop.model):
            return self.skipped(IN_PARTS)
        try:
            original = _original(audit)
        except _UnsavableError as error:
            return self.failed(
                f"The state_dicts cannot be saved: torch.save raises {error}.",
                measured="no checkpoint",
                threshold="a checkpoint",
                location=audit.loop.locate("model"),
                fix="keep only tensors, numbers and strings in the state_dict",
            )
        except _NotCallableError as error:
            return self.inconclusive(
                f"Not measured: the model cannot be run on its own: {error} (see MODE102)."
            )
        audit.clock.check()
        with audit.loop.relaunched(audit.seed + 1) as fresh:
            answer = self._compare(audit, original, fresh)
        if answer.status is not Status.PASS:
            return answer
        return self._resumed(audit) or answer

    def _resumed(self, audit: Audit) -> Result | None:
        """Return what the script's own resumption lacks, or None."""
        resumed = audit.probe(ResumedRuns)
        if resumed is not None:
            return self._resumes_without(resumed, proven=True) if resumed.lost else None
        path = audit.probe(ResumePaths)
        if path is None:
            return None
        if path.orphaned is not None:
            return self._trains_another(path.orphaned)
        if not path.lost:
            return None
        return self._forgets(path) if path.saved else self._resumes_without(path)

    def _trains_another(self, where: Location) -> Result:
        return self.failed(
            "Where the script resumes, it makes the network anew after its optimizer was given the "
            "parameters of the one before: the steps that follow change a network that is not "
            "used any more, and the resumed one stays as it was loaded.",
            measured="the optimizer has no parameter of the resumed network",
            threshold="the parameters of the network that is trained",
            location=where,
            fix="load the state into the network that the optimizer has, or make the optimizer "
            "after the network",
        )

    def _forgets(self, path: ResumePath) -> Result:
        saved = " and ".join(path.saved)
        if path.remade:
            again = " and ".join(path.remade)
            return self.failed(
                f"Where the script resumes, it loads the state of {again} and makes it anew right "
                "afterwards: what was loaded is thrown away, and a scheduler made before goes on "
                "with the old one.",
                measured=f"made anew after loading: {again}",
                threshold="what was loaded is used",
                location=path.location,
                fix="make the optimizer once, before optimizer.load_state_dict(...)",
            )
        return self.failed(
            f"The script takes the state of {saved} for its checkpoint and resumes without loading "
            "it: a resumed run goes on with the epochs and begins anew with the rest.",
            measured=f"saved and not loaded: {saved}",
            threshold="all that is saved",
            location=path.location,
            fix='optimizer.load_state_dict(checkpoint["optimizer"])',
        )

    def _resumes_without(self, path: ResumePath | ResumedRun, *, proven: bool = False) -> Result:
        lost = " and ".join(path.lost)
        how = "Started again beside its checkpoint, the script" if proven else "The script"
        answer = self.failed if proven else self.warned
        return answer(
            f"{how} resumes, but does not restore {lost}: a resumed run goes on with the epochs "
            "and begins anew with the rest.",
            measured=f"not restored: {lost}",
            threshold="all that the next step depends on",
            location=path.location,
            fix='save {"model": ..., "optimizer": optimizer.state_dict(), "scheduler": ...}, and '
            'optimizer.load_state_dict(checkpoint["optimizer"])',
        )

    def _compare(self, audit: Audit, original: Original, fresh: Loop) -> Result:
        if (other := _kind(fresh.model)) != original.network:
            return self.inconclusive(
                f"Started again, the program is led by its {other}, not its {original.network}: "
                "the two checkpoints are of different networks."
            )
        try:
            problem = _load(original.saved, fresh)
        except RuntimeError as error:
            return self._unloadable(audit, error)
        for name, parameter in fresh.model.named_parameters():
            parameter.requires_grad_(original.trainable.get(name, parameter.requires_grad))
        seed = audit.seed
        tolerance = max(10 * original.noise, rounding(original.output))
        present = anatomy(fresh.model)
        lost = [n for n in differing(original.parts, present) if n not in original.transient]
        gap = _gap(original, fresh, seed)
        if gap > tolerance:
            transplant(original.transient, original.parts, fresh.model)
            gap = _gap(original, fresh, seed)
        if gap > tolerance:
            return self._outputs_differ(audit, original, fresh, lost, gap, tolerance)
        transplant(original.transient, original.parts, fresh.model)
        return self._next_step(audit, original, fresh, lost, problem)

    def _unloadable(self, audit: Audit, error: RuntimeError) -> Result:
        text = " ".join(str(error).split())
        if "size mismatch" in text:
            return self.inconclusive(
                "The model's shapes depend on the seed, so a checkpoint fits only its own run."
            )
        return self.failed(
            "The state_dict of the trained model does not load into a fresh one: "
            f"{text.partition(': ')[2][:160] or text[:160]}.",
            measured="load_state_dict raises",
            threshold="it loads",
            location=audit.loop.locate(audit.loop.model) or audit.loop.locate("model"),
            fix="create all layers and parameters in __init__, not in forward or during training",
        )

    def _outputs_differ(
        self,
        audit: Audit,
        original: Original,
        fresh: Loop,
        lost: list[str],
        gap: float,
        tolerance: float,
    ) -> Result:
        transplant(lost, original.parts, fresh.model)
        if not lost or _gap(original, fresh, audit.seed) > tolerance:
            return self.inconclusive(
                f"The restored model's outputs differ by {_percent(gap)} of their size, but the "
                "cause was not found: it is outside the model's own attributes."
            )
        return self.failed(
            f"The outputs of a restored checkpoint differ by {_percent(gap)} of their size, "
            f"because {_listed(lost)} {verb(len(lost), 'are', 'is')} not in the state_dict.",
            measured=f"outputs differ by {_percent(gap)}",
            threshold=_percent(tolerance),
            evidence=(_table(lost, original),),
            **_at(audit, lost[0]),
            fix=_fix(lost[0], original),
        )

    def _next_step(
        self, audit: Audit, original: Original, fresh: Loop, lost: list[str], problem: str
    ) -> Result:
        if problem:
            return self.warned(
                f"The optimizer's state_dict does not load into a fresh optimizer: {problem}.",
                measured="load_state_dict raises",
                threshold="it loads",
                location=audit.loop.locate("optimizer"),
                fix="create the same parameter groups, in the same order, before loading",
            )
        different = _different_states(original, fresh)
        with preserved(fresh.subjects):
            after, gradients, rates = _step(fresh, original.batch, audit.seed)
        worst = _worst(original, after)
        if worst is None:
            return self.passed(
                "A restored checkpoint gives the same outputs and the same next step."
            )
        own = "" if rates == original.rates or different else _OWN_RATE
        if strangers := len(strangers_of(audit.loop)):
            own = (
                f"The next step of the restored run differs ({worst}): the optimizer trains "
                f"{count(strangers, 'tensor')} of its own, such as float32 copies of the weights, "
                "which a checkpoint of the network does not cover."
            )
        if own:
            return self.inconclusive(own)
        if _alike(original.gradients, gradients):
            return self._optimizer_differs(audit, worst, different)
        with preserved(fresh.subjects):
            transplant(lost, original.parts, fresh.model)
            again, _, _ = _step(fresh, original.batch, audit.seed)
        if not lost or _worst(original, again) is not None:
            return self.inconclusive(
                _other_inputs(original, fresh, audit.seed)
                or f"The next step of the restored run differs ({worst}), but the cause was not "
                "found: it is outside model and optimizer, and the program may save it itself."
            )
        tensors = [name for name in lost if is_tensorial(original.parts.get(name))]
        answer = self.failed if tensors else self.warned
        return answer(
            f"A run resumed from a checkpoint continues differently ({worst}), because "
            f"{_listed(tensors or lost)} {verb(len(tensors or lost), 'are', 'is')} not in the "
            "state_dict.",
            measured="the next step differs",
            threshold=f"{_CLOSE:g} of the update",
            evidence=(_table(lost, original),),
            **_at(audit, (tensors or lost)[0]),
            fix=_fix((tensors or lost)[0], original),
        )

    def _optimizer_differs(self, audit: Audit, worst: str, different: list[str]) -> Result:
        why = (
            f"loading changes these entries: {', '.join(different[:3])}"
            if different
            else "it keeps state outside its state_dict"
        )
        return self.failed(
            f"With equal gradients, the restored optimizer takes a different step ({worst}): "
            f"{why}.",
            measured="the next step differs",
            threshold=f"{_CLOSE:g} of the update",
            location=audit.loop.locate("optimizer"),
            fix="keep the optimizer's state in self.state and self.param_groups, in the dtype of "
            "its parameters",
        )


class _UnsavableError(Exception):
    """torch.save refused."""


class _NotCallableError(Exception):
    """The model cannot be called with a batch alone."""


def _original(audit: Audit) -> Original:
    """Train a little, save, and note what a faithful copy must reproduce.

    Raises:
        _UnsavableError: the state_dicts cannot be written.
        _NotCallableError: the model cannot be called with a batch alone.
        UserCodeError: a step raised.
    """
    loop, seed, found = audit.loop, audit.seed, Original()
    for i, batch in enumerate(consecutive_batches(loop, _STEPS + 1)):
        audit.clock.check()
        found.batch = batches.clone(batch)
        if i < _STEPS:
            loop.step(batch)
    found.optimizers = [copy.deepcopy(optimizer.state_dict()) for optimizer in loop.optimizers]
    found.saved, found.network = _saved(loop), _kind(loop.model)
    found.parts = anatomy(loop.model)
    found.trainable = {name: p.requires_grad for name, p in loop.model.named_parameters()}
    try:
        _look_at(loop, seed, found)
    except UserCodeError as error:
        raise _NotCallableError(str(error)) from error
    found.weights = _weights(loop)
    steps = []
    for _ in range(2):
        with preserved(loop.subjects):
            after, found.gradients, found.rates = _step(loop, found.batch, seed)
            steps.append(after)
    found.after = steps[0]
    found.step_noise = {n: _largest(w - steps[1][n]) for n, w in steps[0].items()}
    return found


def _look_at(loop: Loop, seed: int, found: Original) -> None:
    """Note what the model makes of the batch in eval mode, and what that changes in it."""
    with preserved(loop.subjects):
        seed_everything(seed)
        found.fed = fed_to(loop, found.batch)
    outputs = []
    for _ in range(2):
        with preserved(loop.subjects):
            seed_everything(seed)
            outputs.append(evaluate(loop, found.fed))
            found.transient = differing(found.parts, anatomy(loop.model))
    found.output, found.noise = outputs[0], distance(*outputs)


def _kind(model: nn.Module) -> str:
    """Return the class of ``model`` by name: a restarted script makes its classes anew."""
    return type(model).__qualname__


def _saved(loop: Loop) -> bytes:
    target = io.BytesIO()
    try:
        torch.save(
            {
                "models": [(_kind(model), model.state_dict()) for model in loop.subjects.models],
                "optimizers": [optimizer.state_dict() for optimizer in loop.optimizers],
                "schedulers": [_state_of(scheduler) for scheduler in loop.schedulers],
            },
            target,
        )
    except Exception as error:
        raise _UnsavableError(describe(error)) from error
    return target.getvalue()


def _state_of(scheduler: Any) -> Any:
    """A schedule made of lambdas or the like may not be saved: it does not change the next step."""
    try:
        state = scheduler.state_dict()
        torch.save(state, io.BytesIO())
    except Exception:
        return None
    return state


def _load(saved: bytes, fresh: Loop) -> str:
    """Load the checkpoint into ``fresh``; return why the optimizers could not be loaded.

    Raises:
        RuntimeError: a model could not be.
    """
    content = torch.load(io.BytesIO(saved), map_location=fresh.device, weights_only=False)
    states = content["models"]
    for model in fresh.subjects.models:
        # A restarted script may come upon its networks in another order.
        found = next((i for i, (kind, _) in enumerate(states) if kind == _kind(model)), None)
        if found is not None:
            model.load_state_dict(states.pop(found)[1])
    try:
        for optimizer, state in zip(fresh.optimizers, content["optimizers"], strict=False):
            optimizer.load_state_dict(state)
    except (ValueError, KeyError, RuntimeError) as error:
        return describe(error)
    for scheduler, state in zip(fresh.schedulers, content["schedulers"], strict=False):
        if state is not None:
            scheduler.load_state_dict(state)
    return ""


def _gap(original: Original, fresh: Loop, seed: int) -> float:
    with preserved(fresh.subjects):
        seed_everything(seed)
        return distance(original.output, evaluate(fresh, original.fed))


def _weights(loop: Loop) -> dict[str, Tensor]:
    return {
        name: p.detach().clone()
        for name, p in loop.model.named_parameters()
        if p.requires_grad and p.layout is torch.strided
    }


def _step(
    loop: Loop, batch: Any, seed: int
) -> tuple[dict[str, Tensor], dict[str, float], tuple[float, ...]]:
    """Take a step; return the weights after it, the norms of its gradients, the learning rates."""
    seed_everything(seed)
    step = loop.step(batches.clone(batch), observe=True)
    seen = step.observation
    norms = {g.parameter: g.norm or 0.0 for g in seen.gradients} if seen is not None else {}
    return _weights(loop), norms, step.lr


def _other_inputs(original: Original, fresh: Loop, seed: int) -> str:
    """Say what else the restored run computes its next step from; empty where nothing is seen."""
    if fresh.makes_batches and fresh.lacks(Needs.STEPS):
        return (
            "The outputs are the same. The next step is not compared, because the script makes its "
            "batches itself, and others after a restart under another seed."
        )
    try:
        with preserved(fresh.subjects):
            seed_everything(seed)
            fed = fed_to(fresh, original.batch)
    except UserCodeError:
        return ""
    before, now = (dict(batches.tensors((x.args, x.kwargs))) for x in (original.fed, fed))
    other = [path for path, value in now.items() if _is_other(before.get(path), value)]
    if 0 < len(other) < len(now):
        return (
            "The outputs are the same. The next step is not, because the network is called with "
            f"{count(len(other), 'tensor')} that the program carries over from the step before, "
            "such as a hidden state, and a resumed run begins with another."
        )
    return ""


def _is_other(before: Tensor | None, now: Tensor) -> bool:
    return before is None or not batches.same_values(before.to(now.device), now)


def _worst(original: Original, after: dict[str, Tensor]) -> str | None:
    """Return how the weights after the step differ, as half a sentence; None if they do not."""
    worst, said = 1.0, None
    for name, expected in original.after.items():
        if name not in after or after[name].shape != expected.shape:
            return f"{name} is missing"
        update = _largest(expected - original.weights[name])
        noise = original.step_noise[name]
        eps = torch.finfo(expected.dtype).eps
        tolerance = max(10 * noise, 64 * eps * _largest(expected), _CLOSE * update, 1e-30)
        excess = _largest(expected - after[name].to(expected.device)) / tolerance
        if excess > worst or math.isnan(excess):
            share = _largest(expected - after[name].to(expected.device)) / max(update, 1e-30)
            worst, said = excess, f"{name} by {_percent(share)} of its update"
    return said


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%"


def _largest(tensor: Tensor) -> float:
    return float(torch.nan_to_num(tensor.abs().float()).max()) if tensor.numel() else 0.0


def _alike(one: dict[str, float], other: dict[str, float]) -> bool:
    return one.keys() == other.keys() and all(
        abs(one[name] - other[name]) <= _CLOSE * max(one[name], 1e-12) for name in one
    )


def _different_states(original: Original, fresh: Loop) -> list[str]:
    """Return the entries of the optimizers' states that loading changed."""
    found: dict[str, None] = {}
    for before, optimizer in zip(original.optimizers, fresh.optimizers, strict=False):
        now = optimizer.state_dict()["state"]
        for index, entries in before["state"].items():
            theirs = now.get(index, {})
            if not isinstance(entries, dict):
                continue
            for key in differing(entries, theirs if isinstance(theirs, dict) else {}):
                value, restored = entries.get(key), theirs.get(key)
                change = ""
                if isinstance(value, Tensor) and isinstance(restored, Tensor):
                    change = f" ({value.dtype} became {restored.dtype})".replace("torch.", "")
                    change = change if value.dtype != restored.dtype else ""
                found[f"{key}{change}"] = None
    return list(found)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _fix(name: str, original: Original) -> str:
    leaf, value = name.rpartition(".")[2], original.parts.get(name)
    if isinstance(value, Tensor):
        return f'self.register_buffer("{leaf}", ...)'
    if is_tensorial(value):
        return f"self.{leaf} = nn.ModuleList(...) or nn.ParameterList(...)"
    return f"return {leaf} from get_extra_state() and set it in set_extra_state()"


def _at(audit: Audit, name: str) -> dict[str, Any]:
    owner = name.rpartition(".")[0]
    module = dict(audit.loop.model.named_modules()).get(owner)
    found = audit.loop.locate(module) if module is not None else None
    return {"module": owner, "location": found or audit.loop.locate("model")}


def _table(lost: list[str], original: Original) -> Table:
    rows = []
    for name in lost[:20]:
        value = original.parts.get(name)
        what = f"tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        rows.append((name, what))
    return Table(title="Not restored by the checkpoint", columns=("name", "type"), rows=tuple(rows))
