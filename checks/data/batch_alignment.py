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
    How: Compares the lengths of a batch's fields, and looks up 16 items from across the epoch.
        Every failure is an exact test.
        - Lengths: the first 64 batches and the last are read, unless torch's own collate function
          made them (their fields agree by construction). Unequal lengths fail only when the
          training step raises on such a batch and runs on the same batch cut to the shortest field;
          packed, ragged and graph batches have unequal lengths by design.
        - Identical items: it fails when the model gets the same input for all items while their
          targets differ, also where random numbers alone make a difference and the data set stores
          different inputs; or when all items are equal and the data set stores different ones. If
          nothing shows that other items exist, it warns.
        - Order: it fails when the collate function, given the same items in another order, sorts
          one field and leaves another in the items' order. A batch that holds the permutation
          itself, for the model to undo, is left alone.
    Fix: Drop both or none: `items = [item for item in items if item is not None]` before the fields
        are taken apart, and sort there too; `return self.images[i], self.labels[i]`.
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
            message = f"All {count} items read from across the epoch are identical"
            if lookup.stored > 1:
                return self.failed(
                    f"{message}, although the data set stores different ones: __getitem__ ignores "
                    "its index.",
                    fix="return self.items[i]  # use the index i",
                    measured="1 different item",
                    **details,
                )
            return self.warned(
                f"{message}: the network sees a single example.",
                fix="return self.items[i]  # use the index i, or set the length to 1",
                measured="1 different item",
                **details,
            )
        if lookup.apart is not None:
            return self._apart(audit, *lookup.apart)
        if _same_input(audit, lookup.batch, count) or _same_but_for_chance(audit, lookup):
            return self.failed(
                f"All {count} items read from across the epoch have the same input but different "
                "targets.",
                fix="return self.inputs[i], self.targets[i]  # use i in both",
                measured="1 different input",
                **details,
            )
        return None

    def _apart(self, audit: Audit, sorted_field: str, kept: str) -> Result:
        return self.failed(
            f"The collate function sorts batch{sorted_field} but leaves batch{kept} in the "
            "original order, so fields of different items are paired.",
            measured="one field sorted, another not",
            threshold="all fields in the same order",
            location=audit.loop.locate(getattr(audit.loop.train_loader, "collate_fn", None))
            or audit.loop.locate("train_loader"),
            fix="items.sort(key=lambda item: len(item[0]))  # whole items, not one field",
        )

    def _lengths(self, audit: Audit, fields: Fields) -> Result:
        if fields.stacked:
            return self.passed(
                "torch's collate function stacks whole items, so all fields have the same length."
            )
        if not fields.odd:
            return self.passed(
                f"All fields of a batch have the same number of rows (batches read: {fields.read})."
            )
        batch, lengths = fields.odd[0]
        said = ", ".join(f"batch{name}: {rows} rows" for name, rows in lengths.items())
        start = f"The fields of a batch differ in length ({said})"
        harm = _harm(audit, batch)
        if not harm:
            if fields.usually_agree:
                return self.noted(
                    f"{start}, unlike in other batches; the training step runs on it all the same."
                )
            return self.passed(f"{start}, and the training step accepts them.")
        if _harm(audit, cut(batch, min(lengths.values()))):
            return self.inconclusive(
                f"{start}, but the training step also fails with all fields cut to the same length."
            )
        table = Table(
            title="Rows of each field",
            columns=("field", "rows"),
            rows=tuple((f"batch{name}", float(rows)) for name, rows in lengths.items()),
        )
        return self.failed(
            f"{start}: {harm}; with all fields cut to the same length it runs.",
            measured=said,
            threshold="equal lengths",
            evidence=(table,),
            location=audit.loop.locate(getattr(audit.loop.train_loader, "collate_fn", None))
            or audit.loop.locate("train_loader"),
            fix="items = [item for item in items if item is not None]  # before splitting into "
            "fields",
        )


def _same_but_for_chance(audit: Audit, lookup: Lookup) -> bool:
    """Whether inputs differ by the random numbers drawn alone, of a data set that stores others.

    What it draws in place of reading it, such as a generator's noise, has no stored counterpart.
    """
    if lookup.redrawn is None or not _same_input(audit, lookup.redrawn, len(lookup.indices)):
        return False
    fields = [t for _, t in batches.tensors(lookup.redrawn) if t.ndim > 1]
    return any(_constant(t) and t[0].numel() > 1 and t[0].numel() in lookup.sizes for t in fields)


def _same_input(audit: Audit, batch: Any, rows: int) -> bool:
    """Whether what the model is given is the same in every row, while the targets are not."""
    fields = [t for _, t in batches.tensors(batch) if t.ndim > 0 and t.shape[0] == rows]
    if not any(_constant(t) for t in fields):
        return False
    try:
        with preserved(audit.loop.subjects):
            call = call_on(audit.loop, batch)
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
