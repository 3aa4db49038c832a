"""DATA119: whether every item of a batch is in it."""

from __future__ import annotations

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.collation import Collating
from nnaudit.report import Kind, Result


class CollatedItems(Check):
    """Does a batch contain every item's fields?

    Why: A collate function or processor that keeps a field of the first item only gives all rows of
        the batch the same text, mask or table. Broadcasting hides that its first dimension is 1,
        and the network is trained on questions that belong to other pictures.
    How: Collates six items from all over the training set one by one, and together with each of
        them first, with the same random numbers.
        - Fails when a field of the batch equals, bit for bit, what the first item alone gives, or
          holds that in every row, whichever is first, though not all items give the same.
        - Fields that are equal for all items (positions), and those that depend on all (the longest
          length), pass.
    Fix: In collate_fn, use all items: `torch.stack([item["input_ids"] for item in items])`.
    References: PyTorch documentation of torch.utils.data, "Working with collate_fn".
    """

    code, name, kind = "DATA119", "collated-items", Kind.EXACT
    needs = (Needs.ITEMS,)
    probes = (Collating,)

    def run(self, audit: Audit) -> Result:
        """Look for fields of the first item only."""
        seen = audit.probe(Collating)
        if seen is None:
            return self.skipped("The items of a batch cannot be looked up and collated alone.")
        if not seen.first_only:
            return self.passed(f"A batch of {seen.items} items keeps the fields of all of them.")
        names = ", ".join(seen.first_only[:3])
        return self.failed(
            f"The batch keeps {names} of its first item only: of {seen.items} items with different "
            "values it holds one, and all rows share it.",
            measured=f"{len(seen.first_only)} of {seen.fields} fields of the first item only",
            threshold="0",
            location=audit.loop.locate(getattr(audit.loop.train_loader, "collate_fn", None))
            or audit.loop.locate("train_loader"),
            fix="In collate_fn, stack the field of all items: "
            "torch.stack([item[...] for item in items]).",
        )
