"""DATA116: whether reading an item leaves the data set as it was."""

from __future__ import annotations

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.item_reads import ItemReading
from nnaudit.report import Kind, Result


class ItemPurity(Check):
    """Does reading an item leave the data set unchanged?

    Why: `image = self.images[i]` is a view of the stored array, not a copy. A normalisation or an
        augmentation that works in place (`image -= mean`, `image[a:b] = 0`) changes the stored
        image, and the next epoch normalises and augments it again: after a few epochs nothing is
        left of the data. With worker processes that live for one epoch it stays hidden.
    How: Reads eight items with one random state, with another, and with the first again. Before
        the first and the third reading, the generators and counters of the process and of the data
        set are restored.
        - Fails when an item differs between two readings with the same state, and is equal again,
          bit for bit, once the arrays and tensors that were written to have their old contents
          (rows of at least four numbers, 256 MB in all).
        - A cache that the first reading fills returns the same item again, and passes. So does
          other randomness (SEED101): putting the data back does not bring the item back.
    Fix: `image = self.images[i].copy()` (`.clone()` for a tensor).
    References: NumPy documentation, "Copies and views".
    """

    code, name, kind = "DATA116", "item-purity", Kind.EXACT
    needs = (Needs.ITEMS,)
    probes = (ItemReading,)

    def run(self, audit: Audit) -> Result:
        """Compare readings of the same items."""
        reads = audit.probe(ItemReading)
        if reads is None:
            return self.skipped(
                "No item can be read by its index from arrays that the data set holds."
            )
        if not reads.differing:
            return self.passed(f"Reading {reads.items} items twice leaves the data set unchanged.")
        return self.failed(
            f"Reading an item changes the data set: {reads.differing} of {reads.items} items come "
            "out different when they are read again with the same random state, and "
            f"{_listed(reads.changed)} was written to.",
            measured=f"{reads.differing} of {reads.items} items differ",
            threshold="0",
            location=audit.loop.locate(getattr(audit.loop.train_loader, "dataset", None))
            or audit.loop.locate("train_loader"),
            fix="image = self.images[i].copy()  # .clone() of a tensor, before it is changed",
        )


def _listed(names: tuple[str, ...]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{names[0]}{more}"
