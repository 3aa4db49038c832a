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
    repeated_in_subset,
    source_length,
)
from nnaudit.report import Kind, Numbers, Result


class EpochCoverage(Check):
    """Does an epoch visit every item of the training set once?

    Why: Items that no epoch asks for are data that were paid for and are not used: a sampler made
        for another data set, a `drop_last` in a fixed order, a `__len__` that counts batches. A
        stream that every worker reads in full gives each item several times, so an epoch is
        several, and batches from different workers are the same.
    How: Follows three epochs of the loader's index without loading anything; null hypothesis: each
        item that the sampler was made for is asked for. It fails when all three leave out the same
        items, by torch's own samplers, and these are over 5 % of the data (in another order the
        last batch loses others each time: a note, above 20 % a warning). The same by a sampler of
        the user's own is a warning, unless it holds a list of its items or the validation loader
        has the rest. It fails too when the sampler was made for a smaller data set, and when
        `len(dataset)` counts batches, not items. Samplers with replacement, weights or a number of
        samples mean what they do. A stream with several workers is read by one worker and by all:
        it fails when they give every item as often as there are workers, or leave out over 5 %,
        or when an endless one begins with the same 32 items or more in two workers. A sampler that
        repeats items, and a stream made up anew in each pass, prove nothing.
    Fix: `drop_last=False` or `shuffle=True`; `WeightedRandomSampler(weights_per_item, len(data))`;
        `return len(self.files)`; `islice(items, info.id, None, info.num_workers)` in `__iter__`.
    References: PyTorch documentation, torch.utils.data (IterableDataset, "duplicate data";
        WeightedRandomSampler).
    """

    code = "DATA105"
    name = "epoch-coverage"
    kind = Kind.EXACT
    needs = (Needs.TRAIN_LOADER,)
    probes = (Coverage,)
    options: ClassVar[dict[str, float]] = {"never": 0.05, "dropped": 0.2}

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
                f"len(dataset) is {found.size:,}, the number of batches, but {total:,} items can "
                f"be indexed: {found.hidden / total:.0%} of them are never visited",
                found.hidden / total,
                "return len(self.items)  # of items, not of batches",
            )
        source = source_length(found.access.sampler)
        if source is None or source[0] >= found.size:
            return None
        length, of_data = source
        share = 1 - length / found.size
        sampler = type(found.access.sampler).__name__
        message = (
            f"The {sampler} was made for {length:,} items and the data set has {found.size:,}, so "
            f"{share:.0%} are never visited"
        )
        if not of_data:
            return self.noted(f"{message}.")
        if share <= self.option(audit, "never"):
            return None
        weighted = type(found.access.sampler) is WeightedRandomSampler
        fix = (
            "WeightedRandomSampler(class_weights[labels], len(dataset))  # a weight per item"
            if weighted
            else f"{sampler}(train_set)  # the data set that the loader reads"
        )
        return self._fails(audit, message, share, fix)

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
            return self.passed(_by_design(found), evidence=(_numbers(found),))
        if not found.complete:
            return self.inconclusive("An epoch has too many items to be followed to its end.")
        if type(sampler) is DistributedSampler and sampler.num_replicas > 1:
            return self.skipped(
                f"This process visits the share of rank {sampler.rank} of {sampler.num_replicas}."
            )
        share = int(found.never.sum()) / max(found.count, 1)
        if share > self.option(audit, "never"):
            return self._left_out(audit, found, share)
        return self._some_dropped(audit, found)

    def _left_out(self, audit: Audit, found: Epochs, share: float) -> Result:
        sampler = found.access.sampler
        count = int(found.never.sum())
        dropped = is_of_torch(sampler)
        by = "drop_last in an order that is always the same" if dropped else type(sampler).__name__
        message = (
            f"The same {count:,} of {found.count:,} items ({share:.0%}) are left out of "
            f"every epoch by {by}"
        )
        if dropped:
            return self._fails(audit, message, share, "DataLoader(..., drop_last=False)")
        if not bool((found.never & ~found.elsewhere).any()) or _holds(sampler, found):
            return self.passed(
                f"{type(sampler).__name__} visits the {found.count - count:,} items of "
                f"{found.count:,} that it was given."
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
                f"len(dataset) is {found.size:,}, but {found.size + found.hidden:,} items can be "
                f"indexed: {hidden:.0%} of them are never visited.",
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
                f"{twice:,} of the {found.size:,} indices of the Subset name an item that another "
                "names too: they weigh more, if that is meant.",
            )
        said = f"Each of {found.count:,} items is visited in an epoch"
        loss = f", but for {dropped:,} that do not fill a batch" if dropped else ""
        return self.passed(f"{said}{loss}.", evidence=(_numbers(found),))

    def _dropped(self, audit: Audit, found: Epochs, dropped: int, share: float) -> Result:
        message = (
            f"An epoch leaves out {dropped:,} of {found.count:,} items ({share:.0%}), "
            "others each time"
        )
        if not is_of_torch(found.access.sampler) or share <= self.option(audit, "dropped"):
            return self.noted(f"{message}.", evidence=(_numbers(found),))
        return self.warned(
            f"{message}: the last batch is not full and drop_last=True drops it.",
            evidence=(_numbers(found),),
            measured=f"{share:.1%}",
            threshold=f"{self.option(audit, 'dropped'):.0%}",
            location=audit.loop.locate("train_loader"),
            fix="DataLoader(..., drop_last=False)  # or a smaller batch",
        )

    # --- streams ---------------------------------------------------------------------------------

    def _stream(self, audit: Audit, found: Streams) -> Result:
        whole = found.alone_ended and found.together_ended
        alone, together = found.alone[0], found.together
        if whole and found.fixed and alone:
            several = {item: count * found.workers for item, count in alone.items()}
            if together == several:
                return self._several_times(audit, f"all of its {alone.total():,} items", whole=True)
            return self._shared(audit, found)
        if count := found.same_beginning:
            return self._several_times(audit, f"the same {count:,} items first", whole=False)
        if whole and alone.total() >= LEAST_ITEMS and (kinds := found.several_times_in_part):
            return self._in_part(audit, found, kinds)
        if whole and together.total() == found.workers * alone.total():
            return self.noted(
                f"One worker yields {alone.total():,} items, made up anew in each pass, and "
                f"{found.workers} workers {together.total():,}: an epoch is as many times as long."
            )
        return self.inconclusive(
            "The stream is too long, or made up anew in each pass, to know whether its workers "
            "share it; two of them do not begin alike."
        )

    def _several_times(self, audit: Audit, what: str, *, whole: bool) -> Result:
        workers = audit.loop.train_loader.num_workers
        times = f"so an epoch holds each {workers} times" if whole else "so they read the same"
        return self.failed(
            f"Each of the {workers} workers yields {what}, {times}: the stream is not divided "
            "among them.",
            measured=f"{workers} times each" if whole else "the same items in two workers",
            threshold="once",
            location=audit.loop.locate(audit.loop.train_loader.dataset)
            or audit.loop.locate("train_loader"),
            fix=_SHARE,
        )

    def _shared(self, audit: Audit, found: Streams) -> Result:
        """The workers do divide the stream: judge how well."""
        alone, together = found.alone[0], found.together
        total, workers = alone.total(), found.workers
        missing, surplus = (alone - together).total(), (together - alone).total()
        start = f"One worker yields {total:,} items, {workers} workers together"
        never = self.option(audit, "never")
        if max(missing, surplus) <= never * total:
            return self.passed(f"{start} {together.total():,}: they share the stream.")
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
                f"{start} {wrong}: with drop_last=True each drops its last batch.",
                fix="DataLoader(..., drop_last=False)",
                **details,
            )
        return self.failed(f"{start} {wrong} of them.", fix=_SHARE, **details)

    def _in_part(self, audit: Audit, found: Streams, kinds: int) -> Result:
        """Items vary from pass to pass, but for a part: names tell them apart, labels hardly."""
        total = found.alone[0].total()
        if kinds > total / 2:
            what = f"all of its {total:,} items, each varied"
            return self._several_times(audit, what, whole=True)
        return self.warned(
            f"One worker yields {total:,} items and {found.workers} workers "
            f"{found.together.total():,}, with just as many times each label: the stream is "
            "probably not divided among them.",
            measured=f"{found.together.total():,} items",
            threshold=f"{total:,}",
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
        f"{name} chooses the items of an epoch: it asks {int(visits.sum()):,} times for "
        f"{int((visits > 0).sum()):,} different ones of {found.size:,}."
    )


def _numbers(found: Epochs) -> Numbers:
    visits = found.visits[0]
    return Numbers(
        title="What an epoch asks for",
        values={
            "items in the data set": found.size,
            "asked for": int(visits.sum()),
            "different ones": int((visits > 0).sum()),
            "left out of every epoch": int(found.never.sum()),
        },
    )
