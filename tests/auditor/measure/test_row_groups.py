from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from nnaudit.measure.random_access import RandomAccess
from nnaudit.measure.row_groups import Groups, groups_of, kind_of, tells_group
from nnaudit.measure.stored_rows import Stored
from nnaudit.probes.shared_groups import counted


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("patient_id", "patient"), ("patientIds", "patient"), ("subjects", "subject"),
        ("speaker", "speaker"), ("group_idx", "group"), ("PatientID", "patient"),
        ("patient_age", ""), ("user_name_length", ""), ("labels", ""), ("groups_per_user", ""),
    ],
)  # fmt: skip
def test_names_of_groups(name: str, kind: str) -> None:
    assert kind_of(name) == kind


@dataclass
class Item:
    x: torch.Tensor
    speaker: str


class Spoken(Dataset):
    """Recordings by speaker, told by the items alone."""

    def __init__(self, speakers: list[Any]) -> None:
        self.held = speakers

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, i: int) -> Item:
        return Item(torch.zeros(2), self.held[i])


class Slices(Dataset):
    """Slices with a file each, whose name is in a list of records or in the items alone."""

    def __init__(self, patients: list[int], *, records: bool) -> None:
        files = [f"patient{p:03d}_slice{i:02d}.png" for i, p in enumerate(patients)]
        self.records = [{"file": name, "label": 0} for name in files] if records else None
        self.files = dict(enumerate(files))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Any:
        x = torch.zeros(2)
        return {"x": x} if self.records else {"x": x, "name": self.files[i]}


def stored(data: Dataset) -> Stored:
    found = Stored.of(RandomAccess.of(DataLoader(data, 4, collate_fn=list)))
    assert found is not None
    return found


@pytest.mark.parametrize("records", [False, True])
def test_names_of_files_in_records_and_in_items_tell_the_group(records: bool) -> None:
    one, other = (stored(Slices([p, q] * 6, records=records)) for p, q in ((1, 2), (2, 3)))
    (groups,) = groups_of(one, other)
    assert groups.column == ("file" if records else "name")
    assert (groups.kind, set(groups.train), set(groups.val)) == (
        "patient", {"001", "002"}, {"002", "003"},
    )  # fmt: skip


def test_fields_of_the_items_tell_the_group() -> None:
    one, other = stored(Spoken(["ann", "bob"] * 8)), stored(Spoken(["bob", "eve"] * 4))
    (groups,) = groups_of(one, other)
    assert (groups.kind, set(groups.train), set(groups.val)) == (
        "speaker", {"ann", "bob"}, {"bob", "eve"},
    )  # fmt: skip
    assert all(["ann", "bob"][row % 2] == name for row, name in zip(groups.rows, groups.train,
                                                                       strict=True))  # fmt: skip


def test_numbers_counted_in_each_of_two_sets_mean_nothing() -> None:
    one, other = stored(Spoken([0, 1] * 8)), stored(Spoken([0, 1] * 4))
    assert not list(groups_of(one, other))
    assert list(groups_of(one, one))


class Files(Spoken):
    def __init__(self, names: list[str]) -> None:
        self.samples = [(name, 0) for name in names]
        self.held = names


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("scans/patient_{}/slice_{}.png", "patient"), ("sub-{}_run-{}.nii", "subject"),
        ("img_{}_{}.png", ""), ("class_{}/photo_{}.jpg", ""),
    ],
)  # fmt: skip
def test_names_of_files_tell_the_group(name: str, kind: str) -> None:
    files = stored(Files([name.format(f"{i // 3:03}", i) for i in range(12)]))
    found = [each for each in groups_of(files, files) if each.column == "samples"]
    assert [each.kind for each in found] == ([kind] if kind else [])
    assert all(each.train == each.val and len(set(each.train)) == 4 for each in found)


def of(train: list[Any], val: list[Any]) -> Groups:
    return Groups("user", "user", tuple(train), tuple(val), tuple(range(len(train))))


def test_few_groups_and_names_of_single_rows_are_not_counted() -> None:
    assert counted(of([*range(40)] * 3, [*range(5)] * 3)) is None
    assert counted(of([*range(100)], [*range(100, 150)])) is None
    seen = counted(of([*range(40)] * 3, [*range(20, 60)] * 2))
    assert seen is not None and (seen.shared, seen.groups, seen.share) == (20, 40, 0.5)


def test_an_index_tells_the_group_and_a_diagnosis_does_not() -> None:
    names = [f"p{i // 2}" for i in range(40)]
    index = [torch.tensor([7, i // 2]) for i in range(40)]
    diagnosis = [torch.tensor([(i // 2) % 3]) for i in range(40)]
    assert tells_group(index, names)
    assert not tells_group(diagnosis, names)
