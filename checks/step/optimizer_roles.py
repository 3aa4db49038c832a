"""STEP113: whether each of several optimizers trains its own network, by its own loss."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import ClassVar

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.adversaries import Adversaries, Round
from nnaudit.probes.gradient_origins import (
    Doubled,
    GradientOrigins,
    Leftover,
    Origins,
    SharedGradient,
)
from nnaudit.report import Kind, Result
from nnaudit.wording import count, verb

_LEAST = 2


class OptimizerRoles(Check):
    """With several optimizers, does each train its own network by its own loss?

    Why: In a GAN, an actor-critic or any other pair of networks, one trains against the other. When
        the generator's optimizer also holds the discriminator, each of its steps teaches the
        discriminator that fakes are real. When the generated batch is not detached, the
        discriminator's loss leaves gradients in the generator, which its next step adds to its own,
        of the opposite sign. No error is raised, and the losses look as they often do.
    How: Exact, where two optimizers or more step. For each backward pass it is noted what it adds
        to the gradients of each optimizer, for up to 12 batches. It fails when one of these is seen
        in every step of the optimizer, two at least:
        - Two optimizers step the same parameters with gradients of different losses, and either the
          gradients oppose each other (cosine below minus `opposed`), or the one holds all of the
          other's parameters and reaches its own through them, as a generator's loss reaches it
          through the discriminator, while the other's loss does not reach these and no third
          optimizer holds them (as in InfoGAN, where one optimizer is for a loss of both).
        - A part of the gradient comes from a loss that another optimizer steps on, and opposes the
          rest (cosine below minus `opposed`), or is made to raise or lower the very output of this
          optimizer's network, as an actor's loss is what its critic says, or pulls what this
          network says of the other's outputs the other way than its own loss does. The other has
          stepped before, or its loss reaches it through this network, whose own loss does not.
          Several losses that agree more or less (a shared encoder, a decoder's) do not.
        - A network that judges another's outputs is pulled in opposite ways by its own loss on data
          and on what the other made, and the other's loss pulls in the same way as its own on what
          was made (a generator that is given the label "fake"): they do not train against each
          other. Only verdicts of one number per row, or per place of an image, count.
        - An optimizer steps, and none of its parameters has a gradient at any of its steps, though
          its network is called for each with gradients on: no loss reaches it.
        It warns where two optimizers hold the same parameters and step them one after the other
          with the very same gradient.
        It warns of an optimizer none of whose parameters requires a gradient at any of its steps:
        frozen for the other network's loss, and never thawed. A later stage may thaw it.
        One loss whose gradient two optimizers use, each for its own, passes: sparse and dense
        parameters, a rate for each part.
    Fix: Give each optimizer its own network's parameters, detach what it only looks at
        (`discriminator(fake.detach())`), and call zero_grad() right before each backward().
    References: Goodfellow et al., "Generative Adversarial Nets" (2014), algorithm 1; PyTorch
        tutorial, "DCGAN".
    """

    code, name, kind = "STEP113", "optimizer-roles", Kind.EXACT
    needs = (Needs.OWN_STEPS, Needs.OPTIMIZER)
    probes = (GradientOrigins, Adversaries)
    consequence_of = ("STEP102",)
    options: ClassVar[dict[str, float]] = {"opposed": 0.3}

    def run(self, audit: Audit) -> Result:
        """Look for shared parameters, gradients left over and frozen ones."""
        origins = audit.probe(GradientOrigins)
        if len(origins.optimizers) < _LEAST:
            return self.skipped("There is one optimizer.")
        if (finding := self._finding(audit, origins)) is not None:
            return finding
        if min(origins.steps) < _LEAST:
            still = origins.steps.index(min(origins.steps))
            return self.inconclusive(
                f"Not judged: {_named(audit, origins, still)} stepped "
                f"{count(origins.steps[still], 'time')} in {max(origins.steps)} steps of the other."
            )
        return self.passed(
            f"Each of {len(origins.optimizers)} optimizers steps with gradients of its own losses."
        )

    def _finding(self, audit: Audit, origins: Origins) -> Result | None:
        """Return what is wrong, the most certain first."""
        opposed = self.option(audit, "opposed")
        if shared := _against(origins, opposed):
            return self._shares(audit, origins, shared)
        rounds = audit.probe(Adversaries)
        if leftovers := _opposing(origins, opposed, against(rounds)):
            return self._leaves(audit, origins, leftovers)
        if alike := together(rounds):
            return self._agrees(audit, origins, alike)
        return self._of_steps(audit, origins)

    def _of_steps(self, audit: Audit, origins: Origins) -> Result | None:
        """Return what is wrong with how often something is stepped."""
        if origins.unreached and origins.steps[origins.unreached[0]] >= _LEAST:
            return self._is_unreached(audit, origins, origins.unreached[0])
        if len(origins.doubled) >= _LEAST:
            return self._steps_twice(audit, origins, origins.doubled)
        if origins.frozen and origins.steps[origins.frozen[0]] >= _LEAST:
            return self._is_frozen(audit, origins, origins.frozen[0])
        return None

    def _shares(self, audit: Audit, origins: Origins, shared: list[SharedGradient]) -> Result:
        seen = shared[0]
        cosine = median(each.cosine for each in shared)
        holder, owner = _named(audit, origins, seen.holder), _named(audit, origins, seen.owner)
        why = (
            f"its loss reaches its own parameters through {_them(seen.tensors)}, so it trains its "
            "opponent to lose"
            if seen.downstream
            else f"with gradients that oppose the other's (cosine {cosine:.2f})"
        )
        return self.failed(
            f"{_capital(holder)} also holds {count(seen.tensors, 'tensor')} that {owner} trains, "
            f"and steps them in every iteration: {why}.",
            measured=f"{count(seen.tensors, 'tensor')} in two optimizers, cosine {cosine:.2f}",
            threshold="each parameter is stepped by the optimizer of its own loss",
            location=audit.loop.locate(audit.loop.optimizers[seen.holder]) or seen.location,
            fix="give each optimizer its own part alone, such as "
            "torch.optim.Adam(gan.generator.parameters(), lr=...)",
        )

    def _leaves(self, audit: Audit, origins: Origins, leftovers: list[Leftover]) -> Result:
        seen = leftovers[0]
        cosine, share = (
            median(each.cosine for each in leftovers),
            median(each.share for each in leftovers),
        )
        mine, other = (_named(audit, origins, each) for each in (seen.optimizer, seen.other))
        how = f"in the opposite direction (cosine {cosine:.2f})"
        if all(each.maximised for each in leftovers):
            how = f"made to move the output of {mine} itself"
        elif cosine > -self.option(audit, "opposed"):
            how = f"made to move the output of {mine} the other way (cosine {cosine:.2f})"
        return self.failed(
            f"{_capital(mine)} steps with a gradient that also contains that of the loss of "
            f"{other}: {share:.2g} times the size of its own, {how}. It was not zeroed in between.",
            measured=f"cosine {cosine:.2f} between the two parts",
            threshold="the gradient of its own loss",
            location=seen.location or audit.loop.locate("training_step"),
            fix="detach what the other network is only shown: "
            "discriminator(generator(noise).detach()); and call zero_grad() right before "
            "loss.backward()",
        )

    def _agrees(self, audit: Audit, origins: Origins, rounds: list[Round]) -> Result:
        seen = rounds[0]
        judge, maker = (_named(audit, origins, each) for each in (seen.judge, seen.maker))
        way = "raise" if seen.through > 0 else "lower"
        return self.failed(
            f"The losses of {judge} and of {maker} both {way} what the first network says of the "
            "second one's outputs: they do not train against each other, and the second learns to "
            "be told apart.",
            measured=f"the same direction in {count(len(rounds), 'step')} of {len(rounds)}",
            threshold="opposite directions",
            location=seen.location or audit.loop.locate(audit.loop.optimizers[seen.maker]),
            fix="give the generator's loss the label of real data: "
            "criterion(discriminator(fake), torch.ones(...))",
        )

    def _steps_twice(self, audit: Audit, origins: Origins, doubled: tuple[Doubled, ...]) -> Result:
        seen = doubled[0]
        first, second = (_named(audit, origins, each) for each in (seen.first, seen.second))
        return self.warned(
            f"{count(seen.tensors, 'tensor')} {verb(seen.tensors, 'are', 'is')} held by {first} "
            f"and by {second}, and both step with the same gradient: "
            f"{verb(seen.tensors, 'they move', 'it moves')} twice for each batch.",
            measured=f"{count(seen.tensors, 'tensor')} in two optimizers",
            threshold="each parameter in one optimizer",
            location=audit.loop.locate(audit.loop.optimizers[seen.second]) or seen.location,
            fix="give each optimizer its own part alone, such as "
            "torch.optim.Adam(self.critic.parameters(), lr=...)",
        )

    def _is_unreached(self, audit: Audit, origins: Origins, which: int) -> Result:
        named = _named(audit, origins, which)
        return self.failed(
            f"{_capital(named)} steps {origins.steps[which]} times, and none of its parameters has "
            "a gradient at any of them: its network is called, and no loss reaches it.",
            measured="no gradient",
            threshold="a gradient of its own loss",
            location=audit.loop.locate(audit.loop.optimizers[which]),
            fix="compute its loss from the network's output as it is, without detach(): "
            "criterion(discriminator(fake), ...)",
        )

    def _is_frozen(self, audit: Audit, origins: Origins, which: int) -> Result:
        return self.warned(
            f"{_capital(_named(audit, origins, which))} steps {origins.steps[which]} times, and "
            "none of its parameters ever requires a gradient by then: they are not trained.",
            measured="no parameter that requires a gradient",
            threshold="requires_grad is set again before the network's own loss",
            location=audit.loop.locate(audit.loop.optimizers[which]),
            fix="discriminator.requires_grad_(True) before its own loss, where "
            "requires_grad_(False) was set for the generator's",
        )


def _against(origins: Origins, opposed: float) -> list[SharedGradient]:
    """Return the shared gradients of a pair that works against itself in all that was seen."""
    for pair in dict.fromkeys((each.holder, each.owner) for each in origins.shared):
        shared = [each for each in origins.shared if (each.holder, each.owner) == pair]
        through = all(each.downstream and each.contained for each in shared)
        if len(shared) >= _LEAST and (through or all(each.cosine < -opposed for each in shared)):
            return shared
    return []


def together(rounds: Sequence[Round]) -> list[Round]:
    """Return the rounds of a pair of networks that pull the same way in all that was seen."""
    for pair in dict.fromkeys((each.judge, each.maker) for each in rounds):
        seen = [each for each in rounds if (each.judge, each.maker) == pair]
        if len(seen) >= _LEAST and all(each.through == each.made == -each.real for each in seen):
            return seen
    return []


def against(rounds: Sequence[Round]) -> set[tuple[int, int]]:
    """Return the pairs, judge and maker, that pull opposite ways in all that was seen."""
    pairs = {(each.judge, each.maker) for each in rounds}
    agree = {(each.judge, each.maker) for each in rounds if each.through != -each.made}
    return pairs - agree


def _opposing(
    origins: Origins, opposed: float, adversaries: set[tuple[int, int]]
) -> list[Leftover]:
    """Return what is left over of another's loss, where every step of an optimizer has it."""
    for which, steps in enumerate(origins.steps):
        left = [each for each in origins.leftovers if each.optimizer == which]
        # The first step recorded may have begun before the recording did.
        if len(left) >= max(_LEAST, steps - 1) and all(
            each.cosine < -opposed or each.maximised or (each.optimizer, each.other) in adversaries
            for each in left
        ):
            return left
    return []


def _named(audit: Audit, origins: Origins, which: int) -> str:
    held = origins.networks[which]
    what = f"the optimizer of {held}" if held else f"optimizer {which + 1}"
    place = audit.loop.locate(audit.loop.optimizers[which])
    return f"{what} (line {place.line})" if place is not None else what


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _them(tensors: int) -> str:
    return "them" if tensors > 1 else "it"
