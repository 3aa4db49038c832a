"""PERF102: whether the autograd graphs of past steps are kept alive."""

from __future__ import annotations

from itertools import pairwise

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.kept_graphs import KeptGraphs
from nnaudit.report import Curve, Kind, Result, Series
from nnaudit.wording import count, verb


class MemoryGrowth(Check):
    """Is the autograd graph of each step freed when the step is over?

    Why: A loss that is added to a total or appended to a list keeps its autograd graph alive, of
        every step since the beginning. Memory grows until it runs out, an epoch or a night later,
        and steps get slower on the way.
    How: After three steps to settle, eight steps are taken on the same batch. After each, the live
        tensors with an autograd history are found and the nodes behind them counted, each once. It
        warns where the number grows in every single step. A loop that frees its graphs holds the
        same number each time, one that keeps a window of steps reaches its full size. Nodes are
        counted rather than bytes, which allocators and caches change for reasons of their own.
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
                f"{kept.nodes[-1]:,} autograd nodes are alive after a step, and the number does "
                "not grow: graphs are freed."
            )
        more = kept.tensors[-1] - kept.tensors[0]
        what = (
            f"{count(more, 'more tensor')} with an autograd graph {verb(more, 'are', 'is')} kept "
            f"({kept.kinds[0][0]})"
            if more >= len(growth) and kept.kinds
            else "the graph of one tensor has become longer and longer"
        )
        return self.warned(
            f"Memory leak: every step leaves {min(growth)} or more autograd nodes behind. After "
            f"{len(growth)} steps {what}.",
            measured=f"{kept.nodes[0]:,} nodes grow to {kept.nodes[-1]:,}",
            threshold="no growth",
            evidence=(curve,),
            location=audit.loop.locate("training_step"),
            fix="keep numbers, not graphs: total += loss.item() or losses.append(loss.detach()); "
            "for a hidden state that is carried over, hidden = hidden.detach()",
        )
