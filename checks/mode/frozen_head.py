"""MODE110: whether the output layer, where it is new, is trained."""

from __future__ import annotations

import ast
import re
from collections import Counter

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Loop, Needs
from nnaudit.loop.graph import LOSS
from nnaudit.measure.reseeded import differing_weights
from nnaudit.measure.seeding import source_files
from nnaudit.probes.first_steps import First, FirstSteps
from nnaudit.report import Kind, Result, Status
from nnaudit.targets.source import called, source_of
from nnaudit.wording import count, verb

_MOST = 0.5
"""Share of a network's numbers that are no random projection on purpose."""

_TABLE = 1000
"""Numbers of which mean and deviation say where they come from."""

_FACTOR = re.compile(r"(^|\.)(lora_(embedding_)?[AB]|lora_(up|down)|hada_w\d_[ab])(\.|$)")
"""Low-rank factors, as PEFT, diffusers and others name them."""


class FrozenHead(Check):
    """Is what is new in the network trained: its output layer, its adapters?

    Why: Freezing everything but some layers, or freezing in a loop over all parameters, also
        freezes the new output layer. Its random weights mix the features for good, and the layers
        that are trained can make up for only a little of that.
    How: Looks at the layer with a weight matrix whose output the model returns, or the loss is
        computed from, in the first step.
        - Warns when none of its parameters requires a gradient, others of the network do, and its
          weights differ with another seed: they are random, not loaded. A random projection at the
          output may be by design.
        - A frozen output layer with loaded weights passes.
        - Warns when at least half of the network's numbers are frozen matrices that differ with
          another seed: a trunk that was to be loaded; or when an embedding is frozen and holds
          standard normal numbers. A second network of the shapes of the trained one (a teacher, a
          target) is left out, and a program that sets `requires_grad` to anything but False:
          it may thaw what is frozen now.
        - Warns when all low-rank factors of an adapter (`lora_A`, `lora_B`) are frozen and other
          parameters are trained: so PEFT loads an adapter unless told that it is trained. An
          adapter may be used as it is, below a new head.
        - Warns when both factors of an adapter are random at the start (not zero, and others with
          another seed) beside weights that are loaded: the network begins as another function than
          the one that was loaded. Factors that are made from the weights do not depend on the seed,
          or the weights are reduced by their product.
        - Notes layers without an adapter whose names differ only in numbers from those of layers
          that have one: the blocks that a loop has left out, if it was not on purpose.
    Fix: `model.fc.requires_grad_(True)`, and give its parameters to the optimizer.
    References: PyTorch tutorial, "Transfer Learning for Computer Vision", "ConvNet as fixed feature
        extractor".
    """

    code, name, kind = "MODE110", "frozen-head", Kind.JUDGEMENT
    needs = (Needs.OWN_STEPS, Needs.FRESH_RUN)
    probes = (FirstSteps,)

    def run(self, audit: Audit) -> Result:
        """Look at the output layer, and where it is frozen at another seed's."""
        loop = audit.loop
        if adapters := _frozen_adapters(loop.model):
            return self._adapters(audit, adapters)
        if (full := _full_adapters(loop.model)) and (loud := self._loud(audit, full)) is not None:
            return loud
        answer = self._head(audit)
        if answer.status is not Status.WARN and (trunk := self._trunk(audit)) is not None:
            return trunk
        bare = _bare_layers(loop.model)
        return self._incomplete(bare) if bare and answer.status is not Status.WARN else answer

    def _head(self, audit: Audit) -> Result:
        loop = audit.loop
        name = _output_layer(audit.probe(FirstSteps), loop.model)
        if name is None:
            return self.skipped("No layer was seen whose output the model returns unchanged.")
        parameters = dict(loop.model.get_submodule(name).named_parameters())
        trained = any(p.requires_grad for p in loop.model.parameters())
        if any(p.requires_grad for p in parameters.values()) or not trained:
            return self.passed(f"The output layer ({name or 'the model'}) is trained.")
        audit.clock.check()
        with loop.relaunched(audit.seed + 1) as other:
            differing = differing_weights(loop, other)
        prefix = f"{name}." if name else ""
        if not any(differing.get(f"{prefix}{each}", False) for each in parameters):
            return self.passed(f"The output layer ({name}) is frozen with loaded weights.")
        elements = sum(p.numel() for p in parameters.values())
        return self.warned(
            f"The output layer ({name}) is frozen with random weights ({elements:,} numbers), "
            "while layers before it are trained.",
            measured="no parameter of the output layer requires a gradient",
            threshold="a trained output layer",
            module=name,
            location=loop.locate(loop.model.get_submodule(name)) or loop.locate("model"),
            fix=f"model.{name}.requires_grad_(True)  # and give its parameters to the optimizer",
        )

    def _trunk(self, audit: Audit) -> Result | None:
        """Warn where most of the network is frozen with random weights."""
        loop = audit.loop
        frozen, looked_up = _frozen_matrices(loop.model), _looked_up(loop.model)
        elements = sum(p.numel() for p in loop.model.parameters() if not is_lazy(p))
        if not (_is_much(frozen, elements) or frozen.keys() & looked_up) or _thaws(loop):
            return None
        audit.clock.check()
        with loop.relaunched(audit.seed + 1) as other:
            differing = differing_weights(loop, other)
        random = {name: p for name, p in frozen.items() if differing.get(name, False)}
        # Vectors of words differ with the words, and so with how rows are dealt to the sets.
        tables = {
            name: p
            for name, p in frozen.items()
            if name in looked_up and differing.get(name, True) and _is_standard_normal(p)
        }
        random = random if _is_much(random, elements) else tables
        if not random:
            return None
        number, first = sum(p.numel() for p in random.values()), next(iter(random))
        return self.warned(
            f"{number / elements:.0%} of the network is frozen with random weights "
            f"({count(len(random), 'weight tensor')}, {first} first): they were not loaded, and "
            "nothing trains them.",
            measured=f"{number:,} of {elements:,} numbers frozen and random",
            threshold="frozen weights that were trained before",
            module=first.rpartition(".")[0],
            location=loop.locate(loop.model) or loop.locate("model"),
            fix="load trained weights before freezing, or train them: model.requires_grad_(True)",
        )

    def _loud(self, audit: Audit, full: dict[str, list[str]]) -> Result | None:
        """Warn of adapters among ``full`` that are random beside loaded weights."""
        loop = audit.loop
        audit.clock.check()
        with loop.relaunched(audit.seed + 1) as other:
            differing = differing_weights(loop, other)
        names = list(differing)
        random = [
            owner
            for owner, factors in full.items()
            if all(differing.get(factor, False) for factor in factors)
            and (base := [n for n in names if n.startswith(f"{owner}.") and n not in factors])
            and not any(differing[n] for n in base)
        ]
        if not random:
            return None
        return self.warned(
            f"Both low-rank factors of {count(len(random), 'adapter')} begin with random numbers "
            f"({random[0]} first), beside weights that were loaded: the network does not begin as "
            "the one that was loaded.",
            measured=f"a product of factors that is not zero in {count(len(random), 'adapter')}",
            threshold="one factor of zeros",
            module=random[0],
            location=loop.locate(loop.model.get_submodule(random[0])) or loop.locate("model"),
            fix="nn.init.zeros_(lora_B)  # lora_A random, so that the product begins at zero",
        )

    def _incomplete(self, bare: dict[str, tuple[list[str], list[str]]]) -> Result:
        pattern, (adapted, without) = next(iter(bare.items()))
        return self.noted(
            f"Of {len(adapted) + len(without)} layers named {pattern}, {len(adapted)} "
            f"{verb(len(adapted), 'have', 'has')} an adapter; {without[0]} is the first without, "
            "and its weights stay as they are. If that is not on purpose, let the loop that puts "
            "adapters in go through all blocks."
        )

    def _adapters(self, audit: Audit, factors: list[str]) -> Result:
        return self.warned(
            f"All {len(factors)} low-rank factors of the adapter are frozen ({factors[0]} first), "
            "while other parameters are trained.",
            measured=f"0 of {len(factors)} factors require a gradient",
            threshold="trained factors",
            module=factors[0].rpartition(".")[0],
            location=audit.loop.locate("model") or audit.loop.locate(audit.loop.model),
            fix="PeftModel.from_pretrained(base, adapter, is_trainable=True)",
        )


def _frozen_matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the frozen weight matrices beside trained ones.

    None where they may be a second network: a target or a teacher has the shapes of what is
    trained.
    """
    known = {n: p for n, p in model.named_parameters() if not is_lazy(p) and p.ndim > 1}
    frozen = {name: p for name, p in known.items() if not p.requires_grad}
    trained = Counter(tuple(p.shape) for p in known.values() if p.requires_grad)
    shapes = Counter(tuple(p.shape) for p in frozen.values())
    return {} if not trained or shapes <= trained else frozen


def _thaws(loop: Loop) -> bool:
    """Whether the source lets anything be trained again: what is frozen now may be thawed later."""
    sources = [source_of(file) for file in source_files(loop)]
    calls = (call for source in sources for call in source.find(ast.Call))
    set_to = (node for source in sources for node in source.find(ast.Assign))
    return any(
        called(call) == "requires_grad_" and not any(map(_is_false, call.args)) for call in calls
    ) or any(
        isinstance(target, ast.Attribute)
        and target.attr == "requires_grad"
        and not _is_false(node.value)
        for node in set_to
        for target in node.targets
    )


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def _looked_up(model: nn.Module) -> set[str]:
    """Return the names of the tables that tokens are looked up in."""
    tables = (name for name, m in model.named_modules() if isinstance(m, nn.Embedding))
    return {f"{name}.weight" for name in tables}


def _is_standard_normal(table: nn.Parameter) -> bool:
    """Whether ``table`` has the mean and deviation that ``nn.Embedding`` draws, to five errors."""
    rows = table.detach().float()
    drawn = rows[(rows != 0).any(1)].flatten()  # padding is zero
    if drawn.numel() < _TABLE:
        return False
    error = drawn.numel() ** -0.5
    return bool(drawn.mean().abs() < 5 * error and (drawn.std() - 1).abs() < 5 * error)


def _is_much(parameters: dict[str, nn.Parameter], elements: int) -> bool:
    return sum(p.numel() for p in parameters.values()) >= _MOST * elements


def _frozen_adapters(model: nn.Module) -> list[str]:
    """Return the low-rank factors in ``model``, where all are frozen and others are trained."""
    factors = {n: p for n, p in model.named_parameters() if _FACTOR.search(n)}
    if not factors or any(p.requires_grad for p in factors.values()):
        return []
    return list(factors) if any(p.requires_grad for p in model.parameters()) else []


def _full_adapters(model: nn.Module) -> dict[str, list[str]]:
    """Return the layers whose adapters have two factors or more and no zeros, with these factors.

    A layer is named by what stands before the factor's own name.
    """
    factors: dict[str, list[str]] = {}
    values = {n: p for n, p in model.named_parameters() if not is_lazy(p)}
    for name in values:
        if (match := _FACTOR.search(name)) and match.start():
            factors.setdefault(name[: match.start()], []).append(name)
    return {
        owner: names
        for owner, names in factors.items()
        if len(names) > 1 and all(bool((values[name] != 0).all()) for name in names)
    }


def _bare_layers(model: nn.Module) -> dict[str, tuple[list[str], list[str]]]:
    """Return layers with adapters and frozen ones without, whose names differ in numbers only.

    By the pattern of the names; those without have a weight matrix of a shape that one with has.
    """
    matrices: dict[str, tuple[str, bool, torch.Size]] = {}
    adapted: set[str] = set()
    for name, p in model.named_parameters():
        if match := _FACTOR.search(name):
            adapted.add(name[: match.start()])
        elif not is_lazy(p) and p.ndim > 1:
            matrices[name] = name.rpartition(".")[0], p.requires_grad, p.shape
    patterns: dict[str, tuple[list[str], list[str]]] = {}
    shapes: dict[str, set[torch.Size]] = {}
    for owner in sorted(adapted - {""}):
        pattern = _numbered(owner)
        patterns.setdefault(pattern, ([], []))[0].append(owner)
        inside = (e for name, (_, _, e) in matrices.items() if name.startswith(f"{owner}."))
        shapes.setdefault(pattern, set()).update(inside)
    for owner, trained, shape in matrices.values():
        pattern = _numbered(owner)
        if (
            owner not in adapted
            and pattern in patterns
            and not trained
            and shape in shapes[pattern]
        ):
            patterns[pattern][1].append(owner)
    return {pattern: found for pattern, found in patterns.items() if found[1]}


def _numbered(name: str) -> str:
    """Return a module's name with a star for every number in it."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def _output_layer(first: First, model: nn.Module) -> str | None:
    """Return the layer whose output the model returns, or the loss is computed from, unchanged."""
    modules = dict(model.named_modules())
    seen = first.observations[0] if first.observations else None
    for maker, taker in reversed(seen.flows if seen is not None else []):
        module = modules.get(maker) if taker in ("", LOSS) else None
        own = module.parameters(recurse=False) if module is not None else ()
        if any(not is_lazy(p) and p.ndim > 1 for p in own):
            return maker
    return None
