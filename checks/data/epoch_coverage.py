"""DATA105: items of the training set that no epoch visits, or that come several times."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from torch.utils.data import WeightedRandomSampler
from torch.utils.data.distributed import DistributedSampler

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.coverage import (
    LEAST_ITEMS,
    Coverage,
    Epochs,
    Streams,
    Unknown,
    declared_indices,
    is_declared,
    is_of_torch,
    misread_indices,
    repeated_in_subset,
    source_length,
)
from nnaudit.report import Kind, Numbers, Result


class EpochCoverage(Check):
    """Does an epoch visit every item of the training set once?

    Why: Items that no epoch visits are wasted: a sampler made for another data set, `drop_last`
        with a fixed order, a `__len__` that counts batches. A stream that every worker reads in
        full gives each item several times, so one epoch is really several, and batches from
        different workers repeat each other.
    How: Follows the indices of three epochs without loading anything, and compares the items
        visited with those the sampler was made for.
        - Fails when torch's own samplers leave out the same items in all three epochs, and these
          are more than `never` of the data; when the sampler was made for a smaller data set; or
          when `len(dataset)` counts batches, not items.
        - Fails when a `RandomSampler` or `SequentialSampler` is given a list of indices: it visits
          as many items from the first one on, whatever the list says. Made for a number of items
          (`range(200)`), it may be for a part by design: a note, and a warning when more than
          `unread` of the items are in neither loader. So is a `WeightedRandomSampler` that gives
          more than `unread` of them a weight of 0.
        - Items dropped at the end of an epoch, different ones each time, are noted above `never`
          and warn above `dropped`.
        - A sampler of the user's own that leaves out the same items warns, unless it holds a list
          of its items or the validation loader has the rest. Samplers with replacement, weights or
          a number of samples choose by design.
        - A stream with several workers is read by one worker and by all. It fails when together
          they give every item as often as there are workers, or leave out more than `never`, or
          when an endless stream starts with the same 32 items or more in two workers. A sampler
          that repeats items, and a stream generated at random in each pass, prove nothing.
    Fix: `drop_last=False` or `shuffle=True`; `WeightedRandomSampler(weights_per_item, len(data))`;
        `return len(self.files)`; `islice(items, info.id, None, info.num_workers)` in `__iter__`.
    References: PyTorch documentation, torch.utils.data (IterableDataset, "duplicate data";
        WeightedRandomSampler).
    """

    code = "DATA105"
    name = "epoch-coverage"
    kind = Kind.EXACT
    needs = (Needs.ITEMS,)
    probes = (Coverage,)
    options: ClassVar[dict[str, float]] = {"never": 0.05, "dropped": 0.2, "unread": 0.5}

    def run(self, audit: Audit) -> Result:
        """Judge what was asked for, or what the workers of a stream gave."""
        found = audit.probe(Coverage)
        if isinstance(found, Unknown):
            answer = self.inconclusive if found.applies else self.skipped
            return answer(f"{found.why[0].upper()}{found.why[1:]}.")
        if isinstance(found, Streams):
            return self._stream(audit, found)
        return self._made_for_another(audit, found) or self._visits(audit, found)

    # --- by index --------------------------------------------------------------------------------

    def _made_for_another(self, audit: Audit, found: Epochs) -> Result | None:
        """The data set or the sampler says a length that is not that of the data."""
        size = found.access.loader.batch_size
        total = found.size + found.hidden
        if found.hidden and size and size > 3 and found.size in (total // size, -(-total // size)):
            return self._fails(
                audit,
                f"len(dataset) returns {found.size:,}, the number of batches, but the data set has "
                f"{total:,} items: {found.hidden / total:.0%} of them are never visited",
                found.hidden / total,
                "return len(self.items)  # the number of items, not of batches",
            )
        source = source_length(found.access.sampler)
        if source is None or source[0] >= found.size:
            return None
        length, of_data = source
        if (given := misread_indices(found.access.sampler, found.size)) is not None:
            return self._positions(audit, found, given)
        share = 1 - length / found.size
        sampler = type(found.access.sampler).__name__
        message = (
            f"The {sampler} was made for {length:,} items but the data set has {found.size:,}: "
            f"{share:.0%} of them are never visited"
        )
        if not of_data:
            return self._of_a_part(audit, found, message)
        if share <= self.option(audit, "never"):
            return None
        weighted = type(found.access.sampler) is WeightedRandomSampler
        fix = (
            "WeightedRandomSampler(class_weights[labels], len(dataset))  # a weight per item"
            if weighted
            else f"{sampler}(train_set)  # the data set that the loader reads"
        )
        return self._fails(audit, message, share, fix)

    def _positions(self, audit: Audit, found: Epochs, given: list[int]) -> Result:
        sampler = type(found.access.sampler).__name__
        shown = ", ".join(map(str, given[:3]))
        return self._fails(
            audit,
            f"The {sampler} was given a list of {len(given):,} indices ({shown}, ...), but visits "
            f"the items 0 to {len(given) - 1:,}: it reads the length of the list, not its entries",
            1 - len(given) / found.size,
            "SubsetRandomSampler(indices)  # or Subset(dataset, indices)",
        )

    def _of_a_part(self, audit: Audit, found: Epochs, message: str) -> Result:
        """Judge a sampler that was made for a number of items: a part may be by design."""
        unread = float((found.never & ~found.elsewhere).mean())
        if unread <= self.option(audit, "unread"):
            return self.noted(f"{message}.")
        return self.warned(
            f"{message}.",
            measured=f"{unread:.1%} never visited",
            threshold=f"{self.option(audit, 'unread'):.0%}",
            location=audit.loop.locate("train_loader"),
            fix=f"{type(found.access.sampler).__name__}(train_set)  # the data set that is read",
        )

    def _never_drawn(self, audit: Audit, found: Epochs) -> Result | None:
        """Warn of weights that are zero for most items."""
        sampler = found.access.sampler
        if type(sampler) is not WeightedRandomSampler or len(sampler.weights) != found.size:
            return None
        zero = (sampler.weights == 0).numpy()
        unread = float((zero & ~found.elsewhere).mean())
        if unread <= self.option(audit, "unread"):
            return None
        return self.warned(
            f"{int(zero.sum()):,} of {found.size:,} items have a weight of 0 in the "
            "WeightedRandomSampler: they are never visited.",
            measured=f"{unread:.1%} never visited",
            threshold=f"{self.option(audit, 'unread'):.0%}",
            location=audit.loop.locate("train_loader"),
            fix="weights = (1.0 / torch.bincount(labels))[labels]  # a weight per item",
        )

    def _fails(self, audit: Audit, message: str, share: float, fix: str) -> Result:
        return self.failed(
            f"{message}.",
            measured=f"{share:.1%} never visited",
            threshold=f"{self.option(audit, 'never'):.0%}",
            location=audit.loop.locate("train_loader"),
            fix=fix,
        )

    def _visits(self, audit: Audit, found: Epochs) -> Result:
        sampler = found.access.sampler
        if is_declared(sampler):
            return self._never_drawn(audit, found) or self.passed(
                _by_design(found), evidence=(_numbers(found),)
            )
        if not found.complete:
            return self.inconclusive(
                "Not measured: an epoch has too many items to follow to its end."
            )
        if type(sampler) is DistributedSampler and sampler.num_replicas > 1:
            return self.skipped(
                f"This process (rank {sampler.rank} of {sampler.num_replicas}) visits only its "
                "share of the items."
            )
        share = int(found.never.sum()) / max(found.count, 1)
        if share > self.option(audit, "never"):
            return self._left_out(audit, found, share)
        return self._some_dropped(audit, found)

    def _left_out(self, audit: Audit, found: Epochs, share: float) -> Result:
        sampler = found.access.sampler
        count = int(found.never.sum())
        dropped = is_of_torch(sampler)
        why = (
            "drop_last=True drops them, and the order is always the same"
            if dropped
            else f"{type(sampler).__name__} leaves them out"
        )
        message = (
            f"The same {count:,} of {found.count:,} items ({share:.0%}) are missing from every "
            f"epoch: {why}"
        )
        if dropped:
            return self._fails(audit, message, share, "DataLoader(..., drop_last=False)")
        if not bool((found.never & ~found.elsewhere).any()) or _holds(sampler, found):
            return self.passed(
                f"{type(sampler).__name__} visits the {found.count - count:,} of {found.count:,} "
                "items that it was given."
            )
        return self.warned(
            f"{message}.",
            evidence=(_numbers(found),),
            measured=f"{share:.1%} never visited",
            threshold=f"{self.option(audit, 'never'):.0%}",
            location=audit.loop.locate(sampler) or audit.loop.locate("train_loader"),
            fix="for start in range(0, len(indices), batch_size):  # the last, smaller one too",
        )

    def _some_dropped(self, audit: Audit, found: Epochs) -> Result:
        dropped = max(int(each.sum()) for each in found.left_out)
        share = dropped / max(found.count, 1)
        hidden = found.hidden / (found.size + found.hidden)
        if hidden > self.option(audit, "never") and not _same_kind(audit):
            return self.warned(
                f"len(dataset) returns {found.size:,}, but the data set has "
                f"{found.size + found.hidden:,} items: {hidden:.0%} of them are never visited.",
                location=audit.loop.locate(found.access.loader.dataset),
                fix="return len(self.items)",
            )
        if found.repeats and not is_of_torch(found.access.sampler):
            return self.passed(_by_design(found), evidence=(_numbers(found),))
        if share > self.option(audit, "never"):
            return self._dropped(audit, found, dropped, share)
        twice = repeated_in_subset(found.access.loader.dataset)
        if twice > self.option(audit, "never") * found.size:
            return self.noted(
                f"{twice:,} of the {found.size:,} indices of the Subset repeat another index: "
                "these items count more than once per epoch.",
            )
        said = f"An epoch visits each of the {found.count:,} items"
        loss = f" except {dropped:,} that do not fill the last batch" if dropped else ""
        return self.passed(f"{said}{loss}.", evidence=(_numbers(found),))

    def _dropped(self, audit: Audit, found: Epochs, dropped: int, share: float) -> Result:
        message = (
            f"An epoch leaves out {dropped:,} of {found.count:,} items ({share:.0%}), different "
            "ones each time"
        )
        if not is_of_torch(found.access.sampler) or share <= self.option(audit, "dropped"):
            return self.noted(f"{message}.", evidence=(_numbers(found),))
        return self.warned(
            f"{message}: drop_last=True drops the last batch, which is not full.",
            evidence=(_numbers(found),),
            measured=f"{share:.1%}",
            threshold=f"{self.option(audit, 'dropped'):.0%}",
            location=audit.loop.locate("train_loader"),
            fix="DataLoader(..., drop_last=False)  # or a smaller batch size",
        )

    # --- streams ---------------------------------------------------------------------------------

    def _stream(self, audit: Audit, found: Streams) -> Result:
        whole = found.alone_ended and found.together_ended
        alone, together = found.alone[0], found.together
        if whole and found.fixed and alone:
            several = {item: count * found.workers for item, count in alone.items()}
            if together == several:
                return self._several_times(audit, f"all {alone.total():,} items", whole=True)
            return self._shared(audit, found)
        if count := found.same_beginning:
            return self._several_times(audit, f"the same {count:,} items first", whole=False)
        if whole and alone.total() >= LEAST_ITEMS and (kinds := found.several_times_in_part):
            return self._in_part(audit, found, kinds)
        if whole and together.total() == found.workers * alone.total():
            return self.noted(
                f"1 worker yields {alone.total():,} items (generated at random in each pass) and "
                f"{found.workers} workers yield {together.total():,}: an epoch gets longer with "
                "the number of workers."
            )
        return self.inconclusive(
            "Not determined: the stream is too long, or generated at random in each pass, to see "
            "whether its workers split it; two workers do not start with the same items."
        )

    def _several_times(self, audit: Audit, what: str, *, whole: bool) -> Result:
        workers = audit.loop.train_loader.num_workers
        times = f", so an epoch contains every item {workers} times" if whole else ""
        return self.failed(
            f"Each of the {workers} workers yields {what}{times}: the stream is not split between "
            "workers.",
            measured=f"{workers} times each" if whole else "the same items in two workers",
            threshold="once each",
            location=audit.loop.locate(audit.loop.train_loader.dataset)
            or audit.loop.locate("train_loader"),
            fix=_SHARE,
        )

    def _shared(self, audit: Audit, found: Streams) -> Result:
        """The workers do divide the stream: judge how well."""
        alone, together = found.alone[0], found.together
        total, workers = alone.total(), found.workers
        missing, surplus = (alone - together).total(), (together - alone).total()
        start = f"1 worker yields {total:,} items, {workers} workers together"
        never = self.option(audit, "never")
        if max(missing, surplus) <= never * total:
            return self.passed(f"{start} {together.total():,}: the stream is split between them.")
        loader = audit.loop.train_loader
        by_drop_last = loader.drop_last and missing < workers * loader.batch_size
        wrong = f"leave out {missing:,}" if missing > surplus else f"yield {surplus:,} twice"
        details = {
            "measured": f"{max(missing, surplus) / total:.1%}",
            "threshold": f"{never:.0%}",
            "location": audit.loop.locate(loader.dataset) or audit.loop.locate("train_loader"),
        }
        if by_drop_last and missing > surplus:
            return self.warned(
                f"{start} {wrong}: with drop_last=True each worker drops its last batch.",
                fix="DataLoader(..., drop_last=False)",
                **details,
            )
        return self.failed(f"{start} {wrong} of them.", fix=_SHARE, **details)

    def _in_part(self, audit: Audit, found: Streams, kinds: int) -> Result:
        """Items vary from pass to pass, but for a part: names tell them apart, labels hardly."""
        total = found.alone[0].total()
        if kinds > total / 2:
            what = f"all {total:,} items, each varied at random"
            return self._several_times(audit, what, whole=True)
        return self.warned(
            f"1 worker yields {total:,} items and {found.workers} workers yield "
            f"{found.together.total():,}, with each label {found.workers} times as often: the "
            "stream is probably not split between workers.",
            measured=f"{found.together.total():,} items",
            threshold=f"{total:,} items",
            location=audit.loop.locate(audit.loop.train_loader.dataset)
            or audit.loop.locate("train_loader"),
            fix=_SHARE,
        )


_SHARE = "items = islice(items, info.id, None, info.num_workers)  # info = get_worker_info()"


def _same_kind(audit: Audit) -> bool:
    """Whether the validation data are of the same class, which may divide its items itself."""
    one, other = (
        getattr(loader, "dataset", None)
        for loader in (audit.loop.train_loader, audit.loop.val_loader)
    )
    return other is not None and type(one) is type(other)


def _holds(sampler: Any, found: Epochs) -> bool:
    """Whether the sampler of the user's own holds a list of the very items it visits."""
    visited = frozenset(np.flatnonzero(found.expected & ~found.never).tolist())
    if declared_indices(sampler) is not None:
        return True
    for value in vars(sampler).values() if hasattr(sampler, "__dict__") else ():
        holder = type("Holder", (), {"indices": value})
        if declared_indices(holder) == visited:
            return True
    return False


def _by_design(found: Epochs) -> str:
    name = type(found.access.sampler).__name__
    visits = found.visits[0]
    return (
        f"{name} chooses the items of an epoch by design: {int(visits.sum()):,} draws of "
        f"{int((visits > 0).sum()):,} different items, from {found.size:,} in the data set."
    )


def _numbers(found: Epochs) -> Numbers:
    visits = found.visits[0]
    return Numbers(
        title="Items requested in an epoch",
        values={
            "items in the data set": found.size,
            "requested": int(visits.sum()),
            "different items": int((visits > 0).sum()),
            "missing from every epoch": int(found.never.sum()),
        },
    )
