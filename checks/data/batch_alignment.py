"""DATA103: batches whose fields do not belong together, and items that are all the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.errors import UserCodeError, describe
from nnaudit.loop.base import Needs
from nnaudit.probes.alignment import Alignment, Fields, Lookup, cut
from nnaudit.probes.perturbation import call_on
from nnaudit.report import Kind, Result, Table
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches


class BatchAlignment(Check):
    """Does a batch hold as many targets as inputs, and a different item in each row?

    Why: A collate function that leaves out a broken image and keeps its label makes a batch of 31
        images and 32 labels: the run ends there, perhaps hours in, or pairs what does not belong
        together. A `__getitem__` that forgets its index gives the same item for all of them, and
        the network learns one example.
    How: Batches of torch's own collate function agree by construction; of others the first 64 and
        the last are read and the lengths of their fields compared. Null hypothesis: a difference is
        meant, as in packed, ragged and graph batches. It fails only when the training step raises
        on such a batch and not on the same batch cut to the shortest field: an exact test. Then 16
        items from all over the epoch are looked up. It fails when the model is given the same
        input for all of them while their targets differ, or when all are equal and the data set
        holds different entries; with nothing behind them it warns, for one example may be all
        there is. And it fails when the collate function, given the same
        items in another order, returns one field as before and another in the items' order: the
        first was sorted, by length perhaps, and the second was not. A batch that holds the
        permutation itself, for the model to undo it, is left alone.
    Fix: Drop both or none: `items = [item for item in items if item is not None]` before the
        fields are taken apart, and sort there too; `return self.images[i], self.labels[i]`.
    References: PyTorch documentation, torch.utils.data ("Working with collate_fn"). Sculley et
        al., Hidden Technical Debt in Machine Learning Systems (2015).
    """

    code = "DATA103"
    name = "batch-alignment"
    kind = Kind.EXACT
    needs = (Needs.TRAIN_LOADER,)
    probes = (Alignment,)

    def run(self, audit: Audit) -> Result:
        """Judge the items first, for they explain more, then the lengths."""
        fields = audit.probe(Alignment)
        items = self._items(audit, fields.lookup) if fields.lookup is not None else None
        return items or self._lengths(audit, fields)

    def _items(self, audit: Audit, lookup: Lookup) -> Result | None:
        count = len(lookup.indices)
        place = audit.loop.locate(getattr(audit.loop.train_loader, "dataset", None))
        details: dict[str, Any] = {
            "location": place or audit.loop.locate("train_loader"),
            "threshold": "different items",
        }
        if lookup.different == 1:
            message = f"The {count} items that were looked up, all over the epoch, are the same"
            if lookup.stored > 1:
                return self.failed(
                    f"{message}, though the data set holds different ones.",
                    fix="return self.items[i]  # i is the index",
                    measured="1 item",
                    **details,
                )
            return self.warned(
                f"{message}: the network is shown one example.",
                fix="return self.items[i]  # or a data set of length 1, if it is meant",
                measured="1 item",
                **details,
            )
        if lookup.apart is not None:
            return self._apart(audit, *lookup.apart)
        if _same_input(audit, lookup):
            return self.failed(
                f"The {count} items that were looked up have the same input, while their targets "
                "differ.",
                fix="return self.inputs[i], self.targets[i]  # i in both",
                measured="1 input",
                **details,
            )
        return None

    def _apart(self, audit: Audit, sorted_field: str, kept: str) -> Result:
        return self.failed(
            f"The collate function sorts batch{sorted_field} and leaves batch{kept} in the order "
            "of the items, so rows that do not belong together meet.",
            measured="one field sorted, another not",
            threshold="all fields in one order",
            location=audit.loop.locate(getattr(audit.loop.train_loader, "collate_fn", None))
            or audit.loop.locate("train_loader"),
            fix="items.sort(key=lambda item: len(item[0]))  # whole items, not one field",
        )

    def _lengths(self, audit: Audit, fields: Fields) -> Result:
        if fields.stacked:
            return self.passed("torch stacks whole items, so the fields of a batch agree.")
        if not fields.odd:
            return self.passed(
                f"All fields have as many rows as each other (batches read: {fields.read})."
            )
        batch, lengths = fields.odd[0]
        said = ", ".join(f"batch{name} {rows}" for name, rows in lengths.items())
        start = f"The fields of a batch differ in length ({said})"
        harm = _harm(audit, batch)
        if not harm:
            if fields.usually_agree:
                return self.noted(f"{start}, which others do not, and the training step copes.")
            return self.passed(f"{start}, and the training step takes them as they are.")
        if _harm(audit, cut(batch, min(lengths.values()))):
            return self.inconclusive(
                f"{start}, but the training step also fails with the fields cut to one length."
            )
        table = Table(
            title="Rows of each field",
            columns=("field", "rows"),
            rows=tuple((f"batch{name}", float(rows)) for name, rows in lengths.items()),
        )
        return self.failed(
            f"{start}: {harm}, and not with the fields cut to one length.",
            measured=said,
            threshold="equal lengths",
            evidence=(table,),
            location=audit.loop.locate(getattr(audit.loop.train_loader, "collate_fn", None))
            or audit.loop.locate("train_loader"),
            fix="items = [item for item in items if item is not None]  # then take apart",
        )


def _same_input(audit: Audit, lookup: Lookup) -> bool:
    """Whether what the model is given is the same in every row, while the targets are not."""
    rows = len(lookup.indices)
    fields = [t for _, t in batches.tensors(lookup.batch) if t.ndim > 0 and t.shape[0] == rows]
    if not any(_constant(t) for t in fields):
        return False
    try:
        with preserved(audit.loop.subjects):
            call = call_on(audit.loop, lookup.batch)
    except UserCodeError:
        return False
    if call is None or call.target is None:
        return False
    inputs = [t for _, t in batches.tensors(call.inputs) if t.ndim > 0]
    targets = [t for _, t in batches.tensors((call.target,)) if t.ndim > 0]
    if not inputs or not targets or any(t.shape[0] != rows for t in (*inputs, *targets)):
        return False
    return all(_constant(t) for t in inputs) and not all(_constant(t) for t in targets)


def _constant(rows: Tensor) -> bool:
    return bool(torch.equal(rows, rows[:1].expand_as(rows)))


def _harm(audit: Audit, batch: Any) -> str:
    """Say what the training step on ``batch`` raises; empty where it copes."""
    loop = audit.loop
    with preserved(loop.subjects):
        try:
            if loop.lacks(Needs.STEPS):
                loop.forward(batch)
            else:
                audit.require_steps()
                loop.step(batch)
        except UserCodeError as error:
            return f"the training step raises {describe(error.original)}"
    return ""
