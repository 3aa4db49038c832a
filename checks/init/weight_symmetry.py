"""INIT103: whether the units of a layer start, and stay, copies of each other."""

from __future__ import annotations

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.symmetry import DuplicateUnits, Symmetry
from nnaudit.report import Kind, Result, Table
from nnaudit.wording import attribute, count


class WeightSymmetry(Check):
    """Do the units of every hidden layer start with different weights?

    Why: Two units with equal incoming and outgoing weights compute the same and get the same
        gradient, so they stay equal for ever: a layer filled with a constant is one unit, however
        wide it is. The loss falls all the same, to what a network of width one can do.
    How: Counts the rows of weights in linear, convolutional and recurrent layers that are equal bit
        for bit. Where at least half of a layer's units are copies, 5 steps are taken at the
        author's learning rate. Fails when afterwards at least half of the units have moved and
        differ from another by less than a thousandth of that movement (rounding makes a
        ten-thousandth).
        - Output layers are left out, since targets tell their units apart, and so are grouped
          filters, which see different channels.
        - Branches that start at zero by design (LoRA, ReZero, a last layer at zero) are told apart
          by what follows them, and pass; so do units that do not move (see GRAD101).
    Fix: Keep the framework's default initialisation, or use
        `nn.init.kaiming_normal_(layer.weight)`; constants are for biases and gains.
    References: Goodfellow, Bengio and Courville, Deep Learning (2016), section 8.4, "break
        symmetry between different units".
    """

    code, name, kind = "INIT103", "weight-symmetry", Kind.EXACT
    needs = (Needs.OWN_STEPS,)
    probes = (Symmetry,)

    def run(self, audit: Audit) -> Result:
        """Judge the layers whose units began as copies."""
        found = audit.probe(Symmetry)
        stuck = [layer for layer in found if 2 * layer.still >= layer.units]
        if stuck:
            return self._stuck(audit, stuck)
        if found:
            return self.passed(
                f"The units of {found[0].module or 'the model'} start as copies of each other but "
                "differ after 5 steps, or do not move at all (see GRAD101).",
                evidence=(_table(found),),
            )
        return self.passed("No hidden layer has units that start as copies of each other.")

    def _stuck(self, audit: Audit, stuck: list[DuplicateUnits]) -> Result:
        first, loop = stuck[0], audit.loop
        modules = dict(loop.model.named_modules())
        what = "all weights are the same number" if first.constant else "equal rows of weights"
        more = f"; {count(len(stuck) - 1, 'other layer')} too" if len(stuck) > 1 else ""
        return self.failed(
            f"{first.still} of {first.units} units of {first.module or 'the model'} start with "
            f"equal weights ({what}{more}) and are still equal after 5 steps: together they can do "
            "no more than a single unit.",
            measured=f"{first.still} of {first.units} units are copies",
            threshold="fewer than half of the units",
            evidence=(_table(tuple(stuck)),),
            location=loop.locate(modules[first.module]) or loop.locate("model"),
            module=first.module,
            fix=f"nn.init.kaiming_normal_({attribute(f'model.{first.parameter}')})  # or the "
            "framework's default",
        )


def _table(found: tuple[DuplicateUnits, ...]) -> Table:
    return Table(
        title="Units that start as copies of another",
        columns=("layer", "type", "units", "copies", "copies after 5 steps"),
        rows=tuple(
            (t.parameter, t.type, float(t.units), float(t.alike), float(t.still))
            for t in found[:20]
        ),
    )
