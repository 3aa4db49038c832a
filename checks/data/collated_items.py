"""DATA119: whether every item of a batch is in it."""

from __future__ import annotations

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.collation import Collating
from nnaudit.report import Kind, Result


class CollatedItems(Check):
    """Does the collate function keep every item's fields?

    Why: A collate function or processor that keeps one field of the first item only gives all rows
        of the batch the same text, mask or table; broadcasting hides that its first dimension is 1.
        The network is trained on questions that belong to other pictures.
    How: Exact. Six items from all over the training set are collated one by one, together, and
        together in the reverse order, with the same random numbers. It fails when a field of the
        batch is, bit for bit, what the first item alone gives, in both orders, though the items
        alone do not all give the same. Fields that are the same for all items, such as positions,
        and those that depend on all, such as the longest length, are not of that kind.
    Fix: torch.stack([item["input_ids"] for item in items])  # in collate_fn: of all items
    References: PyTorch documentation of torch.utils.data, "Working with collate_fn".
    """

    code, name, kind = "DATA119", "collated-items", Kind.EXACT
    needs = (Needs.TRAIN_LOADER,)
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
