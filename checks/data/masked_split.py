"""DATA120: whether rows that a mask holds out are left out of the loss."""

from __future__ import annotations

from torch.utils.data import DataLoader

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.masked_rows import MaskedRows, MaskedSplit
from nnaudit.report import Kind, Result

_FEW = 0.01


class MaskedSplitOfRows(Check):
    """Are rows that a mask holds out for validation left out of the loss?

    Why: Where all rows are in memory at once, as the nodes of a graph, training and validation are
        told apart by masks alone. A loss over all outputs, or with the wrong mask, trains on the
        targets that validation then asks for, and the accuracy is that of rows learnt by heart.
    How: Exact, for programs without a loader whose steps use the same tensors. In up to 25 steps
        and what the script evaluates between them, it is noted which rows of the targets a loss of
        torch's was given with gradients on (all of them, those of a mask or of indices, without
        `ignore_index`), and which rows of the same targets are chosen, without gradients, by a mask
        that the user's code names after held-out rows (`val_mask`, `test_idx`, `data.test_mask`).
        - Fails when the loss was given 1% of these or more.
        - Masks of another name, such as of a class or a group, say nothing.
    Fix: `loss = cross_entropy(out[train_mask], y[train_mask])`.
    References: Kipf and Welling, "Semi-Supervised Classification with Graph Convolutional Networks"
        (2017); PyTorch Geometric documentation, "Learning Methods on Graphs".
    """

    code, name, kind = "DATA120", "masked-split", Kind.EXACT
    needs = (Needs.OWN_STEPS,)
    probes = (MaskedRows,)

    def run(self, audit: Audit) -> Result:
        """Compare the rows of the loss with those that are held out."""
        if isinstance(audit.loop.train_loader, DataLoader):
            return self.skipped("A loader makes the batches (see DATA108).")
        found = audit.probe(MaskedRows)
        if not found:
            return self.skipped("No rows were seen to be held out by a mask.")
        for split in found:
            if split.trained >= max(1.0, _FEW * split.held_out):
                return self._leaks(split)
        return self.passed(
            "The loss was given none of the rows that are held out by "
            + ", ".join(sorted(split.name for split in found))
            + "."
        )

    def _leaks(self, split: MaskedSplit) -> Result:
        every = " (it is given all rows)" if split.trained == split.held_out else ""
        return self.failed(
            f"The loss is given the targets of {split.trained:,} of the {split.held_out:,} rows "
            f"that {split.name} holds out{every}: they are trained on.",
            measured=f"{split.trained:,} of {split.held_out:,} held-out rows in the loss",
            threshold="0",
            location=split.location,
            fix="loss = F.cross_entropy(out[train_mask], y[train_mask])",
        )
