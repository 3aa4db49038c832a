"""PERF102: whether something keeps the graphs of steps that are over."""

from __future__ import annotations

from itertools import pairwise

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.kept_graphs import KeptGraphs
from nnaudit.report import Curve, Kind, Result, Series
from nnaudit.wording import count, verb


class MemoryGrowth(Check):
    """Is the graph of a step let go of when the step is over?

    Why: A loss that is added to a total, or put into a list, brings its history along: the graph of
        every step since the beginning. Memory grows until an epoch, or a night, later it is used
        up, and steps get slower on the way.
    How: Eight steps on one and the same batch, after three to settle in; after each, the live
        tensors with a history are found and the autograd nodes behind them counted, each once. A
        warning where their number grows in every single step: a loop that lets go holds the same
        graph every time, one that keeps a window of steps reaches its full size; the first step
        without growth is the last. Nodes are counted and not bytes, which allocators and caches
        move about for reasons of their own.
    Fix: total += loss.item(), losses.append(loss.detach()), hidden = hidden.detach()
    References: PyTorch documentation, "Frequently Asked Questions: my model reports out of memory".
    """

    code, name, kind = "PERF102", "memory-growth", Kind.JUDGEMENT
    needs = (Needs.OWN_STEPS,)
    probes = (KeptGraphs,)

    def run(self, audit: Audit) -> Result:
        """Look at how the counts develop."""
        kept = audit.probe(KeptGraphs)
        growth = [after - before for before, after in pairwise(kept.nodes)]
        curve = Curve(
            title="Autograd nodes alive after each step",
            x_label="step",
            y_label="nodes",
            series=(
                Series(
                    name="nodes",
                    x=tuple(float(i) for i in range(len(kept.nodes))),
                    y=tuple(float(n) for n in kept.nodes),
                ),
            ),
        )
        if min(growth) <= 0:
            return self.passed(
                f"After each step {kept.nodes[-1]} autograd nodes are alive: the number does not "
                "grow."
            )
        more = kept.tensors[-1] - kept.tensors[0]
        what = (
            f"{count(more, 'more tensor')} with a history {verb(more, 'are', 'is')} kept "
            f"({kept.kinds[0][0]})"
            if more >= len(growth) and kept.kinds
            else "the history of one tensor gets longer and longer"
        )
        return self.warned(
            f"Every step leaves {min(growth)} or more autograd nodes behind: after "
            f"{len(growth)} steps {what}.",
            measured=f"{kept.nodes[0]} nodes, then {kept.nodes[-1]}",
            threshold="no growth",
            evidence=(curve,),
            location=audit.loop.locate("training_step"),
            fix="total += loss.item(), or losses.append(loss.detach()): numbers, not graphs; for a "
            "hidden state that is carried on, hidden = hidden.detach()",
        )
