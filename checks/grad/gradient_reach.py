"""GRAD101: whether every trained parameter gets a gradient."""

from __future__ import annotations

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.gradient_reach import Block, GradientReach, Reach, UnregisteredParameters
from nnaudit.probes.step_trace import ZEROED, StepTrace, zeroed_before_use
from nnaudit.report import Kind, Location, Result, Table


class GradientsReachAll(Check):
    """Does every trained parameter get a gradient?

    Why: A parameter without a gradient keeps its random initial value. The network trains around it
        and ends somewhat worse, without any message: behind a ReLU that is never active, a softmax
        over one element or a rounding, or in a plain Python list, which `model.parameters()` does
        not look into.
    How: Reads the gradients that the optimizer gets in the first 5 steps and, where one is None or
        exactly zero in all of them, in 10 more at the author's own learning rate (a branch that
        starts at zero, such as LoRA, gets its gradient only after a step per zero layer). Zero
        means that every element is exactly 0.0. The blocks that remain are perturbed by 0.1% in 5
        random directions.
        - Fails when a block is dead (in the graph, with a gradient that is always zero), when its
          perturbation changes the loss, or when no parameter gets a gradient.
        - Fails for layers in a plain list, dict or tuple that get a gradient and are in no
          optimizer.
        - Warns about modules that are never called or whose results are unused, often inherited
          from a library, and about part of a recurrent or attention layer.
        - Not reported: experts that got no rows; biases whose gradients cancel exactly (a critic's
          hinge loss); blocks that change the output but not the loss, such as a term with weight 0;
          blocks cut off by design (GRAD107); parameters without an optimizer (GRAD102) or updated
          by the program itself.
    Fix: Register layers with `nn.ModuleList` or `nn.ModuleDict`; revive dead units (lower learning
        rate, LeakyReLU, no ReLU on the output); remove what is not used.
    References: PyTorch documentation of nn.ModuleList and Tensor.grad; Lu et al., "Dying ReLU and
        Initialization", 2019.
    """

    code, name, kind = "GRAD101", "gradient-reach", Kind.EXACT
    needs = (Needs.OWN_STEPS,)
    probes = (GradientReach, StepTrace)
    consequence_of = ("LOSS101", "GRAD107", "STEP102", "STEP106")

    def run(self, audit: Audit) -> Result:
        """Judge the blocks that no gradient reached."""
        reach = audit.probe(GradientReach)
        if reach.strays:
            return self._unregistered(audit, reach.strays)
        blocks = [block for block in reach.blocks if not _is_excused(block)]
        dead = [block for block in blocks if _is_dead(block)]
        measured = f"{reach.reached} of {reach.parameters} parameters get a gradient"
        # A loss that some parameters cancel out of has others; one that all do is not trained.
        meant = all(block.starved or block.intended for block in reach.blocks)
        if reach.severed is not None or (not reach.reached and not meant):
            return self._nothing(audit, reach, measured)
        if dead:
            return self.failed(
                f"No gradient in {reach.steps} steps for {_listed(dead)}: {_cause(dead[0])}.",
                fix=_fix(dead[0]),
                measured=measured,
                threshold="every trained parameter in at least one step",
                evidence=(_table(dead),),
                location=_location(audit, dead[0].name),
                module=dead[0].name,
                modules=tuple(block.name for block in dead),
            )
        if blocks:
            return self.warned(
                f"No gradient in {reach.steps} steps for {_listed(blocks)}: "
                f"{_harmless(blocks[0])}.",
                fix="Remove what is not used, or leave it out of the optimizer.",
                measured=measured,
                threshold="every trained parameter in at least one step",
                evidence=(_table(blocks),),
                location=_location(audit, blocks[0].name),
                module=blocks[0].name,
                modules=tuple(block.name for block in blocks),
            )
        if not reach.parameters:
            return self.skipped("No optimizer trains a parameter of the model.")
        return self.passed(
            f"All parameters that can get a gradient do so within {reach.steps} steps.",
            measured=measured,
        )

    def _unregistered(self, audit: Audit, strays: tuple[UnregisteredParameters, ...]) -> Result:
        first = strays[0]
        count = sum(stray.count for stray in strays)
        what = "it is" if first.container in ("Tensor", "Parameter") else f"a {first.container} is"
        return self.failed(
            f"{count} parameter tensors in {first.place} get a gradient but are never updated: "
            f"{what} not registered with the model, so model.parameters() does not list them.",
            fix=first.registration,
            measured=f"{count} unregistered parameter tensors with a gradient",
            threshold="0",
            evidence=(
                Table(
                    title="Parameters outside the model",
                    columns=("where", "kept in", "tensors"),
                    rows=tuple((stray.place, stray.container, stray.count) for stray in strays),
                ),
            ),
            location=_location(audit, first.owner),
            module=first.owner,
            modules=tuple(stray.owner for stray in strays),
        )

    def _nothing(self, audit: Audit, reach: Reach, measured: str) -> Result:
        if reach.severed is None and zeroed_before_use(audit.probe(StepTrace)):
            return self.inconclusive(ZEROED)
        why = (
            "the loss does not depend on any"
            if reach.severed is not None
            else f"all gradients are None or exactly zero in {reach.steps} steps"
        )
        return self.failed(
            f"No trained parameter gets a gradient: {why}.",
            fix="Compute the loss from the model's output with torch functions, without detach, "
            "item, NumPy or no_grad; call optimizer.step() right after loss.backward().",
            measured=measured,
            threshold="every trained parameter in at least one step",
            location=(reach.severed.location if reach.severed is not None else None)
            or audit.loop.locate("loss"),
        )


def _is_excused(block: Block) -> bool:
    """Whether nothing is wrong, or GRAD107 speaks of it."""
    return block.starved or bool(block.intended) or _cancels(block)


def _cancels(block: Block) -> bool:
    """Whether the loss does not depend on the block by construction."""
    if block.absent or block.moves_loss:
        return False
    return block.moves_output or (block.partial and not block.type and _is_bias(block))


def _is_bias(block: Block) -> bool:
    return all("bias" in name.rpartition(".")[2] for name in block.parameters)


def _is_dead(block: Block) -> bool:
    if block.moves_loss:
        return True
    # Without a graph and without effect: not used. In the graph and always zero: dead.
    return not block.absent and not block.partial


def _cause(block: Block) -> str:
    if block.moves_loss and block.absent:
        return "changing them changes the loss, but the graph is cut in between"
    if block.moves_loss:
        return (
            "changing them changes the loss, but what follows has zero slope (rounding, sign, "
            "argmax, a clamp)"
        )
    return (
        "the gradient is exactly zero, so what follows is dead (a ReLU that is never active, a "
        "saturated or constant function, a softmax over one element, a factor of zero)"
    )


def _fix(block: Block) -> str:
    if block.moves_loss:
        return "Do not cut the graph: no detach, no_grad, .data, .item() or NumPy in between."
    return (
        "Check what the module's output goes through: remove the ReLU there or use LeakyReLU, "
        "normalise the inputs, lower the learning rate, check the dim of the softmax."
    )


def _harmless(block: Block) -> str:
    if block.partial and any(name.endswith("_reverse") for name in block.parameters):
        return "the backward direction is read where it has seen one element only (output[:, -1])"
    if block.partial:
        return "they do not affect the loss (sequences of one element?)"
    if not block.called and block.type:
        return "it is never called in training"
    return "the loss does not use their results"


def _listed(blocks: list[Block]) -> str:
    names = [block.name or "the whole model" for block in blocks]
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _location(audit: Audit, name: str) -> Location | None:
    modules = dict(audit.loop.model.named_modules())
    # The nearest module of the user's own that holds it.
    while name not in modules or (name and audit.loop.locate(modules[name]) is None):
        name = name.rpartition(".")[0]
    return audit.loop.locate(modules[name]) or audit.loop.locate("model")


def _table(blocks: list[Block]) -> Table:
    return Table(
        title="Parameters without a gradient",
        columns=("block", "type", "tensors", "gradient", "called", "affects the loss"),
        rows=tuple(
            (
                block.name or "(model)",
                block.type or "parameter",
                len(block.parameters),
                "None" if block.absent else "exactly zero",
                "yes" if block.called else "no",
                "yes" if block.moves_loss else "no",
            )
            for block in blocks
        ),
    )
