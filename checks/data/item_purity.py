"""DATA116: whether reading an item leaves the data set as it was."""

from __future__ import annotations

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.item_reads import ItemReading
from nnaudit.report import Kind, Result


class ItemPurity(Check):
    """Does reading an item leave the data set as it was?

    Why: image = self.images[i] is a view of the stored array, not a copy. A normalisation or an
        augmentation that works in place (image -= mean, image[a:b] = 0) changes the stored image,
        and the next epoch normalises and augments it again: after a few epochs nothing is left of
        the data. Where items are read by worker processes that live for one epoch each, it shows
        in none of them, and in the main process at once.
    How: Exact. Eight items are read with one random state, with another, and with the first again;
        before the first and the third reading, the generators and counters of the process and of
        the data set are put back. It fails where an item comes out another the second time with
        the same state, and a reading has written to an array or tensor of the data set (of rows of
        at least four numbers, up to 256 MB in all). Null hypothesis: the same item under the same
        state is the same, bit for bit, so one difference is enough. A cache that the first reading
        fills gives the same item again, and passes; so does a transform that draws from the
        system's own randomness (SEED101), as it writes to nothing.
    Fix: image = self.images[i].copy()  # .clone() of a tensor
    References: NumPy documentation, "Copies and views".
    """

    code, name, kind = "DATA116", "item-purity", Kind.EXACT
    needs = (Needs.TRAIN_LOADER,)
    probes = (ItemReading,)

    def run(self, audit: Audit) -> Result:
        """Compare readings of the same items."""
        reads = audit.probe(ItemReading)
        if reads is None:
            return self.skipped("No item can be looked up in data that lie in memory.")
        if not (reads.differing and reads.changed):
            return self.passed(
                f"{reads.items} items come out the same when they are read again with the same "
                "random state."
                if not reads.differing
                else "Reading items writes to no stored data."
            )
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
