"""Patients, recordings, documents of which both training and validation hold rows."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.measure.random_access import RandomAccess
from nnaudit.measure.row_groups import Groups, groups_of, tells_group
from nnaudit.measure.stored_rows import Stored
from nnaudit.probes.rows import Layout, TrainRows, alone, columns_of

FEWEST = 10
"""Groups of validation rows below which a split by group was hardly meant."""

ROWS_EACH = 1.5
"""Rows per group, in the mean, from which these are groups and not the rows' own names."""

_ASKED = 48
"""Groups of which two rows each are looked at, for what the network is told of them."""


@dataclass(frozen=True)
class SharedGroups:
    """One column of groups, and what the two sets share of them.

    Attributes:
        kind: of what: "patient".
        column: how the program calls it.
        groups: groups of the validation rows that were read.
        shared: those of them that training rows are of, too.
        rows: validation rows that were read.
        of_shared: those of them that are of a shared group.
    """

    kind: str
    column: str
    groups: int
    shared: int
    rows: int
    of_shared: int

    @property
    def share(self) -> float:
        """The share of validation rows that are of a group with training rows."""
        return self.of_shared / self.rows


class GroupsInBoth(Probe[SharedGroups | None]):
    """The column of groups that the two sets share most of; None where there is no such column.

    A group that the network is told (the user of a recommendation), or is to tell (the speaker), is
    meant to be on both sides.
    """

    probes = (TrainRows,)

    def measure(self, audit: Audit) -> SharedGroups | None:
        """Read the columns, and two rows each of some groups.

        Raises:
            UserCodeError: a sampler of the user's raised.
        """
        access = RandomAccess.of(audit.loop.train_loader)
        train, val = Stored.of(access), Stored.of(RandomAccess.of(audit.loop.val_loader))
        if access is None or train is None or val is None:
            return None
        layout = audit.probe(TrainRows).layout
        found: list[SharedGroups] = []
        try:
            for groups in groups_of(train, val):
                seen = counted(groups)
                if seen is not None and not _is_known(access, layout, train, groups):
                    found.append(seen)
        except UserCodeError:
            return None  # a data set that only its loader's workers can read
        return max(found, key=lambda each: each.share, default=None)


def counted(groups: Groups) -> SharedGroups | None:
    """Count what ``groups`` share; None where they are too few, or names of the rows."""
    mine, theirs = set(groups.train), set(groups.val)
    per_group = (len(groups.train) + len(groups.val)) / max(len(mine | theirs), 1)
    if len(theirs) < FEWEST or per_group < ROWS_EACH:
        return None
    of_shared = sum(group in mine for group in groups.val)
    return SharedGroups(
        groups.kind, groups.column, len(theirs), len(mine & theirs), len(groups.val), of_shared
    )


def _is_known(access: RandomAccess, layout: Layout, train: Stored, groups: Groups) -> bool:
    """Whether an input or a target of the rows says of which group they are.

    Raises:
        UserCodeError: the data set raised.
    """
    places = _pairs(groups.train)
    index = dict(zip(train.rows, train.indices, strict=True))
    fetched = [columns_of(access.fetch([index[groups.rows[i]]])) for i in places]
    told = [groups.train[i] for i in places]
    paths = (*layout.inputs, *layout.targets)
    return any(
        tells_group([alone(columns[path]) for columns in fetched], told)
        for path in paths
        if fetched and all(path in columns for columns in fetched)
    )


def _pairs(groups: Sequence[Hashable]) -> list[int]:
    """Return the places of the first two rows of some groups that have as many."""
    places: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        places.setdefault(group, []).append(i)
    several = [found[:2] for found in places.values() if len(found) > 1]
    return [i for found in several[:_ASKED] for i in found]
