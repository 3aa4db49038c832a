"""What each process of a distributed training did, as data. Must not import torch.

A rank writes its journal line by line as things happen, so that one that hangs or dies has said
where it stood. :func:`read` makes a :class:`Rank` of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from nnaudit.report import Location, Model


class Collective(Model):
    """A collective operation was entered.

    Attributes:
        number: counts this rank's collectives, from 0.
        op: the function, or what of DistributedDataParallel's it is.
        group: the ranks that have to take part.
        what: of which data type and shape, where all ranks have to agree on these.
        doing: what the script was doing then: "training step 3", "validation".
        at: the user's line.
    """

    kind: Literal["collective"] = "collective"
    number: int
    op: str
    group: tuple[int, ...]
    what: str = ""
    doing: str = ""
    at: Location | None = None

    @property
    def call(self) -> str:
        """What has to be the same on all ranks."""
        return f"{self.op}({self.what})"

    @property
    def place(self) -> str:
        """Where it stands, for a sentence."""
        where = f" at {Path(self.at.file).name}:{self.at.line}" if self.at else ""
        return f"{self.call} in {self.doing}{where}"


class Returned(Model):
    """The collective ``number`` has returned."""

    kind: Literal["returned"] = "returned"
    number: int


class Batch(Model):
    """A batch was given to the training.

    Attributes:
        loader: the number of its loader, in the order in which the script read from them.
        epoch, index: its place: the loader's how manieth pass, and in it, from 0.
        step: optimizer steps taken before.
        digest: a hash of its content.
        drew: by random number generator that was drawn from while it was read, a hash of its state
            before.
        worker_seed: what the seeds of the loader's workers derive from; None without workers.
    """

    kind: Literal["batch"] = "batch"
    loader: int
    epoch: int
    index: int
    step: int
    digest: str
    drew: dict[str, str] = Field(default_factory=dict)
    worker_seed: int | None = None


class Order(Model):
    """The items of one epoch, in the order in which the loader's sampler gives them.

    Attributes:
        batches: how many batches they make.
        complete: the epoch was followed to its end.
        length: the number of items in the data set; 0 for a stream, whose items are not known.
        sampler: the type of what chooses them.
        waits_for_epoch: it has a ``set_epoch``.
        replaces: it draws with replacement, by design.
        at: the line that made the loader.
    """

    kind: Literal["order"] = "order"
    loader: int
    epoch: int
    indices: tuple[int, ...]
    batches: int
    complete: bool
    length: int
    sampler: str
    waits_for_epoch: bool = False
    replaces: bool = False
    at: Location | None = None


class Weights(Model):
    """The state of the networks at one moment.

    Attributes:
        when: the moment, the same word on all ranks.
        step: optimizer steps taken before.
        parameters, buffers: by name, a hash of the bits. Those of which a rank holds a part only
            are left out.
        replicated: the names of the parameters that DistributedDataParallel holds.
        broadcast: DistributedDataParallel gives rank 0's buffers to all ranks.
        sharded: how many parameters are left out.
    """

    kind: Literal["weights"] = "weights"
    when: str
    step: int
    parameters: dict[str, str]
    buffers: dict[str, str] = Field(default_factory=dict)
    replicated: tuple[str, ...] = ()
    broadcast: bool = False
    sharded: int = 0


class Gradients(Model):
    """By parameter, a hash of the bits of what the optimizer first stepped with, but of zeros."""

    kind: Literal["gradients"] = "gradients"
    gradients: dict[str, str]


class Stepped(Model):
    """An optimizer step was taken.

    ``drew`` is as of a batch, of what lies between the batch and the end of the step. ``inputs`` is
    a hash of what the network was first called with.
    """

    kind: Literal["stepped"] = "stepped"
    step: int
    drew: dict[str, str] = Field(default_factory=dict)
    inputs: str = ""


class Validation(Model):
    """A pass over a loader without gradients has begun, or goes on: a batch was read.

    Attributes:
        after: optimizer steps taken before.
        digest: a hash of the batch.
        collectives: how many collectives this rank had called by then.
    """

    kind: Literal["validation"] = "validation"
    after: int
    digest: str
    collectives: int
    at: Location | None = None


class Resumed(Model):
    """The training goes on after a validation, or ends: as of :class:`Validation`."""

    kind: Literal["resumed"] = "resumed"
    after: int
    collectives: int


class Wrote(Model):
    """A file was opened to be written anew, after ``step`` optimizer steps.

    ``meetings`` counts what had kept this rank until the others came to it, too: collectives, the
    beginning of a process group, a wrapper that is made.
    """

    kind: Literal["wrote"] = "wrote"
    path: str
    step: int
    meetings: int = 0
    at: Location | None = None


class Read(Model):
    """A file was opened to be read, for the first time, after as many ``meetings``."""

    kind: Literal["read"] = "read"
    path: str
    meetings: int = 0
    at: Location | None = None


class Wrapped(Model):
    """A DistributedDataParallel object exists.

    Attributes:
        network: the type of the network in it.
        forwards: calls of the wrapper with gradients.
        bypassed: calls of the network in it, or of a part, that went round the wrapper.
        bypassed_at: the line of the first.
        unused: the names of parameters that it waits for, and that had no gradient in the first
            step.
    """

    kind: Literal["wrapped"] = "wrapped"
    network: str
    forwards: int
    bypassed: int
    at: Location | None = None
    bypassed_at: Location | None = None
    unused: tuple[str, ...] = ()


class Clipped(Model):
    """Gradients were clipped to ``limit``, before ``step`` + 1: their ``norm`` was this."""

    kind: Literal["clipped"] = "clipped"
    step: int
    norm: float
    limit: float
    at: Location | None = None


class Held(Model):
    """What the optimizers step, beside what the networks hold.

    Attributes:
        stale: how many parameters are stepped that no network holds.
        unstepped: the names of sharded parameters with a gradient that no optimizer steps.
    """

    kind: Literal["held"] = "held"
    stale: int = 0
    unstepped: tuple[str, ...] = ()


class Summary(Model):
    """What is known at the end.

    Attributes:
        augments: items of the training set differ when they are read under another seed; None
            where that was not tried.
        items: by loader that is trained on, a hash of some items of its data set, read under one
            seed: where it differs, one number means another item on each rank. Nothing of those
            that cannot be read so.
        backend: of the process group.
        strategies: what distributes the work: "DistributedDataParallel", "FSDP2", ...
        joins: the script handles unequal numbers of steps, by torch's ``Join``.
        data_parallel: what distributes the work gives each rank rows of its own: a wrapper over
            all ranks, or parameters sharded over all of them in one dimension.
    """

    kind: Literal["summary"] = "summary"
    augments: bool | None = None
    items: dict[int, str] = Field(default_factory=dict)
    backend: str = ""
    strategies: tuple[str, ...] = ()
    joins: bool = False
    data_parallel: bool = False


class Done(Model):
    """The rank has come to the end of what is watched, or of the script."""

    kind: Literal["done"] = "done"


class Failed(Model):
    """The script raised, ``at`` this line, ``when`` in seconds of the machine's clock.

    A ``refusal`` is ours: the script cannot be watched, and ``message`` says why.
    """

    kind: Literal["failed"] = "failed"
    message: str
    refusal: bool = False
    when: float = 0.0
    doing: str = ""
    at: Location | None = None
    traceback: str = ""


Entry = Annotated[
    Collective
    | Returned
    | Batch
    | Order
    | Weights
    | Gradients
    | Stepped
    | Validation
    | Resumed
    | Wrote
    | Read
    | Wrapped
    | Clipped
    | Held
    | Summary
    | Done
    | Failed,
    Field(discriminator="kind"),
]
ENTRY: TypeAdapter[Entry] = TypeAdapter(Entry)


class Rank(Model):
    """One process's journal. ``entries`` are in the order in which they happened."""

    rank: int
    entries: tuple[Entry, ...] = ()

    @property
    def collectives(self) -> tuple[Collective, ...]:
        """Every collective that was entered, in order."""
        return tuple(e for e in self.entries if isinstance(e, Collective))

    @property
    def waiting_in(self) -> Collective | None:
        """The collective that was entered and has not returned."""
        returned = {e.number for e in self.entries if isinstance(e, Returned)}
        return next((c for c in reversed(self.collectives) if c.number not in returned), None)

    @property
    def batches(self) -> tuple[Batch, ...]:
        """The training's batches."""
        return tuple(e for e in self.entries if isinstance(e, Batch))

    @property
    def orders(self) -> tuple[Order, ...]:
        """The epochs' orders."""
        return tuple(e for e in self.entries if isinstance(e, Order))

    @property
    def weights(self) -> tuple[Weights, ...]:
        """The states of the networks."""
        return tuple(e for e in self.entries if isinstance(e, Weights))

    @property
    def gradients(self) -> dict[str, str]:
        """As of :class:`Gradients`; nothing for a rank that took no step."""
        return next((e.gradients for e in self.entries if isinstance(e, Gradients)), {})

    @property
    def steps(self) -> tuple[Stepped, ...]:
        """The optimizer steps."""
        return tuple(e for e in self.entries if isinstance(e, Stepped))

    @property
    def writes(self) -> tuple[Wrote, ...]:
        """The files that were written."""
        return tuple(e for e in self.entries if isinstance(e, Wrote))

    @property
    def reads(self) -> tuple[Read, ...]:
        """The files that were read."""
        return tuple(e for e in self.entries if isinstance(e, Read))

    @property
    def wrapped(self) -> tuple[Wrapped, ...]:
        """The wrappers."""
        return tuple(e for e in self.entries if isinstance(e, Wrapped))

    @property
    def clips(self) -> tuple[Clipped, ...]:
        """How gradients were clipped."""
        return tuple(e for e in self.entries if isinstance(e, Clipped))

    @property
    def held(self) -> Held:
        """What the optimizers step; nothing for a rank that did not come to its end."""
        return next((e for e in self.entries if isinstance(e, Held)), Held())

    @property
    def summary(self) -> Summary:
        """What was known at the end; nothing for a rank that did not come to it."""
        return next((e for e in self.entries if isinstance(e, Summary)), Summary())

    @property
    def failed(self) -> Failed | None:
        """What the script raised."""
        return next((e for e in self.entries if isinstance(e, Failed)), None)

    @property
    def done(self) -> bool:
        """Whether it came to the end of what is watched."""
        return any(isinstance(e, Done) for e in self.entries)

    @property
    def standing(self) -> str:
        """Where it stood when it was last heard of, for a sentence."""
        if (waiting := self.waiting_in) is not None and not self.done:
            return f"waits in {waiting.place}"
        if self.failed is not None:
            return f"raised {self.failed.message} in {self.failed.doing}"
        if self.done:
            return "goes on to the end"
        return f"had taken {len(self.steps)} optimizer steps"


class Ranks(Model):
    """What was seen of a run of several processes.

    Attributes:
        ranks: one for each process.
        hung: why the run was ended from outside; empty where it ended by itself.
        shortened: epochs and validations were cut short.
        uncut: where the ranks have unequal numbers of batches in an epoch, what came of running it
            to its end: "waits", one rank for another; "ends", the loop does so before; empty where
            that was not tried, or did not come to an end.
        first_steps: what each rank kept of its first step, a
            :class:`nnaudit.ranks.first_step.FirstStep`; empty where one kept nothing.
    """

    ranks: tuple[Rank, ...]
    hung: str = ""
    shortened: bool = True
    uncut: Literal["", "ends", "waits"] = ""
    first_steps: tuple[Any, ...] = ()

    def pairs(self) -> Iterator[tuple[Rank, Rank]]:
        """Yield every two ranks."""
        return combinations(self.ranks, 2)

    @property
    def mismatch(self) -> Mismatch | None:
        """The first collective in which two ranks differ."""
        found = (_mismatch(a, b, self.hung != "") for a, b in self.pairs())
        return next(filter(None, found), None)

    @property
    def shares(self) -> tuple[dict[int, Order], ...]:
        """The first epoch's order of each rank, for every loader that all ranks train from."""
        found: dict[int, dict[int, Order]] = {}
        for rank in self.ranks:
            for order in rank.orders:
                found.setdefault(order.loader, {}).setdefault(rank.rank, order)
        return tuple(orders for orders in found.values() if len(orders) == len(self.ranks))

    def number_alike(self, loader: int) -> bool:
        """Whether a number means the same item on all ranks, as far as is known."""
        known = [rank.summary.items.get(loader, "") for rank in self.ranks]
        return not all(known) or len(set(known)) == 1

    @property
    def uneven(self) -> dict[int, int]:
        """The batches of an epoch by rank, where they differ and nothing provides for that."""
        if any(rank.summary.joins for rank in self.ranks):
            return {}
        for orders in self.shares:
            batches = {rank: order.batches for rank, order in orders.items()}
            if all(o.complete for o in orders.values()) and len(set(batches.values())) > 1:
                return batches
        return {}

    @property
    def data_parallel(self) -> bool:
        """Whether every rank is known to train on rows of its own."""
        return all(rank.summary.data_parallel or _wrapped_calls(rank) for rank in self.ranks)

    @property
    def unused(self) -> Wrapped | None:
        """A wrapper that waits in vain for a parameter, which has made all ranks raise."""
        found = [next((w for w in rank.wrapped if w.unused), None) for rank in self.failures]
        return found[0] if found and len(found) == len(self.ranks) and all(found) else None

    @property
    def failures(self) -> tuple[Rank, ...]:
        """The ranks on which the script raised, the first to do so first.

        Where one has raised, others raise because it no longer answers.
        """
        failed = [(rank.failed.when, rank.rank, rank) for rank in self.ranks if rank.failed]
        return tuple(rank for *_, rank in sorted(failed, key=lambda each: each[:2]))


class Mismatch(Model):
    """Two ranks call different collectives at the same place of their sequence.

    ``call`` or ``other`` is None where that rank goes on without another.
    """

    rank: int
    call: Collective | None
    other_rank: int
    other: Collective | None
    number: int


def _mismatch(a: Rank, b: Rank, ended: bool) -> Mismatch | None:
    """Compare what two ranks called of the collectives that both have to take part in.

    A rank that has ended calls no other: whoever waits for it, waits for ever. One that is only
    behind may still come to it, unless the run was ``ended`` because nothing moved.
    """
    mine, others = _common(a, b), _common(b, a)
    for number, (call, other) in enumerate(zip(mine, others, strict=False)):
        if call.call != other.call:
            return Mismatch(rank=a.rank, call=call, other_rank=b.rank, other=other, number=number)
    ahead, behind, longer = (a, b, mine) if len(mine) > len(others) else (b, a, others)
    number = min(len(mine), len(others))
    if len(mine) == len(others) or ahead.failed is not None or behind.failed is not None:
        return None
    elsewhere = behind.done or (ended and behind.waiting_in is not None)
    if not elsewhere or (ahead.waiting_in is None and not ahead.done):
        return None
    return Mismatch(
        rank=ahead.rank, call=longer[number], other_rank=behind.rank, other=None, number=number
    )


def _wrapped_calls(rank: Rank) -> bool:
    """Whether a rank that has not come to its end has called a wrapper."""
    return any(call.op.startswith("DDP") for call in rank.collectives)


def _common(rank: Rank, other: Rank) -> list[Collective]:
    both = {rank.rank, other.rank}
    return [call for call in rank.collectives if both <= set(call.group)]


def journal(folder: str | Path, rank: int) -> Path:
    """Return where the rank writes its journal."""
    return Path(folder, f"rank{rank}.jsonl")


def read(folder: str | Path, rank: int) -> Rank:
    """Return what a rank has written by now; a line that was cut is left out."""
    file, entries = journal(folder, rank), []
    for line in file.read_bytes().splitlines() if file.exists() else ():
        try:
            entries.append(ENTRY.validate_json(line))
        except ValidationError:
            continue
    return Rank(rank=rank, entries=tuple(entries))
