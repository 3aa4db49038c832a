from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    random_split,
)

from nnaudit import stats
from nnaudit.checks.data.split_leakage import SplitLeakage
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.probes.shared_rows import overlap
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target
from support.verdicts import ask_script

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(500, 6, generator=GENERATOR)
Y = (X[:, 0] > 0).long()
SILENT = (Status.PASS, Status.SKIP, Status.INCONCLUSIVE)


class Anything(nn.Module):
    """Takes inputs of any shape, so that tests need not fit a network to their data."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return self.head(sum(t.float().flatten(1).mean(1, keepdim=True) for t in (x, *more)))


def ask(train: Any, val: Any, loss: Any = F.cross_entropy) -> Result:
    target = Target(Anything, train, val_loader=val, loss=loss)
    return run_check(SplitLeakage, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


def loaders(train: Any, val: Any, **options: Any) -> tuple[DataLoader, DataLoader]:
    return DataLoader(train, 32, shuffle=True, **options), DataLoader(val, 32, **options)


def table(rows: Any) -> TensorDataset:
    return TensorDataset(X[rows], Y[rows])


class Augmented(Dataset):
    """Rows with noise in training; ``transform`` makes it."""

    def __init__(self, x: Tensor, y: Tensor, transform: Callable[[Tensor], Tensor] | None) -> None:
        self.x, self.y, self.transform = x, y, transform

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x = self.x[i]
        return (self.transform(x) if self.transform else x), self.y[i]


class View(Dataset):
    """The usual class around a subset that adds a transform."""

    def __init__(self, inner: Dataset, transform: Callable[[Tensor], Tensor] | None = None) -> None:
        self.inner, self.transform = inner, transform

    def __len__(self) -> int:
        return len(self.inner)  # type: ignore[arg-type]

    def __getitem__(self, i: int) -> Any:
        x, y = self.inner[i]
        return (self.transform(x) if self.transform else x), y


def noisy(x: Tensor) -> Tensor:
    return x + 0.1 * torch.randn(x.shape)


# --- leaks --------------------------------------------------------------------------------------


def sliced_with_an_overlap() -> tuple[DataLoader, DataLoader]:
    return loaders(table(slice(0, 400)), table(slice(350, 500)))


def two_random_splits() -> tuple[DataLoader, DataLoader]:
    data = table(slice(None))
    halves = [random_split(data, [400, 100], torch.Generator().manual_seed(s)) for s in (1, 2)]
    return loaders(halves[0][0], halves[1][1])


def two_random_splits_of_augmented_rows() -> tuple[DataLoader, DataLoader]:
    data = Augmented(X, Y, noisy)
    halves = [random_split(data, [400, 100], torch.Generator().manual_seed(s)) for s in (1, 2)]
    return loaders(halves[0][0], halves[1][1])


def two_splits_under_views() -> tuple[DataLoader, DataLoader]:
    data = table(slice(None))
    halves = [random_split(data, [400, 100], torch.Generator().manual_seed(s)) for s in (1, 2)]
    return loaders(View(halves[0][0], noisy), View(halves[1][1]))


def two_splits_of_two_objects() -> tuple[DataLoader, DataLoader]:
    train, val = Augmented(X, Y, noisy), Augmented(X.clone(), Y, None)
    halves = [
        random_split(data, [400, 100], torch.Generator().manual_seed(s))
        for s, data in ((1, train), (2, val))
    ]
    return loaders(halves[0][0], halves[1][1])


def augmented_against_the_same_rows() -> tuple[DataLoader, DataLoader]:
    return loaders(Augmented(X[:400], Y[:400], noisy), Augmented(X[350:], Y[350:], None))


def samplers_that_overlap() -> tuple[DataLoader, DataLoader]:
    data = table(slice(None))
    one, other = SubsetRandomSampler(range(400)), SubsetRandomSampler(range(380, 500))
    return DataLoader(data, 32, sampler=one), DataLoader(data, 32, sampler=other)


def the_training_part_twice() -> tuple[DataLoader, DataLoader]:
    return loaders(table(slice(0, 400)), table(slice(0, 400)))


def validation_within_training() -> tuple[DataLoader, DataLoader]:
    data = table(slice(None))
    return loaders(data, Subset(data, range(400, 500)))


def a_flag_that_turns_augmentation_off() -> tuple[DataLoader, DataLoader]:
    class Noisy(Dataset):
        def __init__(self, x: Tensor, y: Tensor, train: bool) -> None:
            self.x, self.y, self.train = x, y, train

        def __len__(self) -> int:
            return len(self.x)

        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            return self.x[i] + 0.1 * self.train * torch.randn_like(self.x[i]), self.y[i]

    return loaders(Noisy(X[:400], Y[:400], True), Noisy(X[360:500], Y[360:500], False))


def one_seed_for_both_streams() -> tuple[Any, Any]:
    class Stream(IterableDataset):
        def __init__(self, n: int) -> None:
            self.n = n

        def __iter__(self) -> Iterator[tuple[Tensor, int]]:
            generator = torch.Generator().manual_seed(7)
            for _ in range(self.n):
                x = torch.randn(6, generator=generator)
                yield x, int(x[0] > 0)

    return DataLoader(Stream(400), 32), DataLoader(Stream(100), 32)


def pictures_in_dictionaries() -> tuple[DataLoader, DataLoader]:
    pictures = torch.rand(200, 1, 8, 8, generator=GENERATOR)

    def rows(which: range) -> list[dict[str, Any]]:
        return [{"x": pictures[i], "labels": int(Y[i]), "number": i + 1000 * k}
                for k, i in enumerate(which)]  # fmt: skip

    return loaders(rows(range(150)), rows(range(120, 200)))


LEAKS = (
    sliced_with_an_overlap, two_random_splits, two_random_splits_of_augmented_rows,
    two_splits_of_two_objects, augmented_against_the_same_rows, samplers_that_overlap,
    the_training_part_twice, validation_within_training, one_seed_for_both_streams,
    a_flag_that_turns_augmentation_off, pictures_in_dictionaries,
)  # fmt: skip


@pytest.mark.parametrize("make", LEAKS, ids=lambda make: make.__name__)
def test_rows_on_both_sides_fail(make: Callable[[], tuple[Any, Any]]) -> None:
    result = ask(*make())
    assert result.status is Status.FAIL, result.message
    assert result.fix


def test_rows_seen_through_unlike_views_warn() -> None:
    train, val = two_splits_under_views()
    assert ask(train, val).status is Status.FAIL
    plain = DataLoader(val.dataset.inner, 32)  # type: ignore[attr-defined]
    assert ask(train, plain).status is Status.WARN


def test_copies_made_before_the_split_warn() -> None:
    rare = torch.where(Y == 1)[0][:50]
    rows = torch.cat([torch.arange(500), rare.repeat(6)])
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(3))]
    result = ask(*loaders(table(rows[:640]), table(rows[640:])))
    assert result.status is Status.WARN
    assert "before the split" in result.message


def test_a_row_at_the_seam_warns() -> None:
    data = table(slice(None))
    result = ask(*loaders(Subset(data, range(301)), Subset(data, range(300, 500))))
    assert result.status is Status.WARN


def test_a_demonstration_on_a_few_rows_is_told_so() -> None:
    assert ask(*loaders(table(slice(0, 64)), table(slice(0, 64)))).status is Status.WARN
    loader = DataLoader(table(slice(0, 64)), 32, shuffle=True)
    assert ask(loader, loader).status is Status.WARN


# --- no leaks -----------------------------------------------------------------------------------


def split_once() -> tuple[DataLoader, DataLoader]:
    return loaders(*random_split(table(slice(None)), [400, 100]))


def split_once_and_augmented() -> tuple[DataLoader, DataLoader]:
    train, val = random_split(table(slice(None)), [400, 100])
    return loaders(View(train, noisy), View(val))


def a_few_twins_by_nature() -> tuple[DataLoader, DataLoader]:
    x, y = X.clone(), Y.clone()
    x[450:455], y[450:455] = x[:5], y[:5]
    rows = torch.randperm(500, generator=torch.Generator().manual_seed(5))
    return loaders(TensorDataset(x[rows[:400]], y[rows[:400]]),
                   TensorDataset(x[rows[400:]], y[rows[400:]]))  # fmt: skip


def twelve_kinds_of_customers() -> tuple[DataLoader, DataLoader]:
    rng = np.random.default_rng(0)
    x = np.concatenate([np.eye(4)[rng.integers(0, 4, 800)], np.eye(3)[rng.integers(0, 3, 800)]], 1)
    data = TensorDataset(torch.tensor(x).float(), torch.tensor(rng.integers(0, 2, 800)))
    return loaders(*random_split(data, [600, 200]))


def short_sentences() -> tuple[DataLoader, DataLoader]:
    rng = np.random.default_rng(0)
    words = np.minimum(rng.zipf(1.6, (900, 4)), 40)
    data = TensorDataset(torch.tensor(words), torch.tensor(words[:, 0] % 2))
    return loaders(*random_split(data, [700, 200]))


def windows_up_to_the_border() -> tuple[DataLoader, DataLoader]:
    series = torch.randn(400, generator=torch.Generator().manual_seed(1)).cumsum(0)
    windows = series.unfold(0, 24, 1)
    data = TensorDataset(windows[:, :23], (windows[:, 23] > windows[:, 22]).long())
    return loaders(Subset(data, range(300)), Subset(data, range(300, len(windows))))


def noise_drawn_at_each_access() -> tuple[DataLoader, DataLoader]:
    class Drawn(Dataset):
        def __init__(self, n: int) -> None:
            self.n = n

        def __len__(self) -> int:
            return self.n

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            x = torch.randn(6)
            return x, int(x[0] > 0)

    return loaders(Drawn(300), Drawn(100))


def one_generator_behind_both() -> tuple[DataLoader, DataLoader]:
    data = noise_drawn_at_each_access()[0].dataset
    return loaders(data, data)


def parts_of_every_series() -> tuple[DataLoader, DataLoader]:
    class Parts(Dataset):
        """Of each of 60 series the first moments for training, the last for validation."""

        def __init__(self, series: Tensor, start: int, end: int) -> None:
            self.series, self.start, self.end = series, start, end

        def __len__(self) -> int:
            return len(self.series)

        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            part = self.series[i, self.start : self.end]
            return part[:9], (part[9] > 0).long()

    series = torch.randn(60, 20, generator=torch.Generator().manual_seed(2))
    return loaders(Parts(series, 0, 10), Parts(series, 10, 20))


def other_targets_for_the_same_inputs() -> tuple[DataLoader, DataLoader]:
    ratings = torch.rand(80, 12, generator=torch.Generator().manual_seed(3))
    kept = ratings * (torch.rand(80, 12, generator=torch.Generator().manual_seed(4)) < 0.8)
    return loaders(TensorDataset(kept, kept), TensorDataset(kept, ratings - kept))


def one_graph_with_masks() -> tuple[DataLoader, DataLoader]:
    graph = [(torch.rand(30, 4), torch.rand(30, 2))]
    return DataLoader(graph, 1), DataLoader(graph, 1)


def numbered_rows_in_two_folders() -> tuple[DataLoader, DataLoader]:
    class Folder(Dataset):
        def __init__(self, seed: int, n: int) -> None:
            self.names = [f"{i:04}.png" for i in range(n)]
            self.numbers = torch.arange(n)
            self.seed = seed

        def __len__(self) -> int:
            return len(self.names)

        def __getitem__(self, i: int) -> dict[str, Any]:
            picture = torch.rand(16, generator=torch.Generator().manual_seed(self.seed + i))
            return {"x": picture, "labels": i % 2, "name": self.names[i], "number": i}

    return loaders(Folder(0, 200), Folder(1000, 80))


def padded_to_the_longest() -> tuple[DataLoader, DataLoader]:
    rng = np.random.default_rng(0)
    texts = [torch.tensor(rng.integers(1, 500, rng.integers(12, 30))) for _ in range(300)]

    def collate(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
        x = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return x, x[:, 0] % 2

    return loaders(texts[:220], texts[220:], collate_fn=collate)


def rounded_ages() -> tuple[DataLoader, DataLoader]:
    ages = torch.randint(18, 80, (500, 1), generator=torch.Generator().manual_seed(6)).float()
    data = TensorDataset(ages, Y)
    return loaders(Subset(data, range(400)), Subset(data, range(400, 500)))


HEALTHY = (
    rounded_ages, split_once, split_once_and_augmented, a_few_twins_by_nature,
    twelve_kinds_of_customers, short_sentences, windows_up_to_the_border,
    noise_drawn_at_each_access, one_generator_behind_both,
    other_targets_for_the_same_inputs, one_graph_with_masks,
    numbered_rows_in_two_folders, padded_to_the_longest,
)  # fmt: skip


@pytest.mark.parametrize("make", HEALTHY, ids=lambda make: make.__name__)
def test_sound_splits_are_silent(make: Callable[[], tuple[Any, Any]]) -> None:
    result = ask(*make(), loss=lambda o, y: F.mse_loss(o.mean(), y.float().mean()))
    assert result.status in SILENT, f"{result.status}: {result.message}"


def test_other_parts_of_the_same_series_do_not_fail() -> None:
    assert ask(*parts_of_every_series()).status is not Status.FAIL


def test_a_padded_text_is_the_same_beside_any_other() -> None:
    train, val = padded_to_the_longest()
    leaking = DataLoader([*train.dataset[:30], *val.dataset], 32, collate_fn=val.collate_fn)
    assert ask(train, leaking).status is Status.FAIL


def test_copied_texts_fail_and_short_ones_of_few_words_warn() -> None:
    def texts(shortest: int, longest: int) -> list[tuple[Tensor, int]]:
        draw = torch.Generator().manual_seed(0)
        lengths = torch.randint(shortest, longest, (300,), generator=draw).tolist()
        return [(torch.randint(1, 40, (n,), generator=draw), n % 2) for n in lengths]

    def padded(batch: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        rows, labels = zip(*batch, strict=True)
        return nn.utils.rnn.pad_sequence(list(rows), batch_first=True), torch.tensor(labels)

    for longest, status in ((16, Status.FAIL), (8, Status.WARN)):
        rows = texts(4, longest)
        assert ask(*loaders(rows, list(rows[:60]), collate_fn=padded)).status is status


class Letters(nn.Module):
    """Makes numbers of texts itself."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)

    def forward(self, texts: list[str]) -> Tensor:
        return self.head(torch.tensor([[float(len(text))] for text in texts]))


def test_texts_that_the_network_reads_itself_warn_at_most() -> None:
    def rows(numbers: range) -> list[tuple[str, int]]:
        return [(f"a sentence about {i} and {i * i}", i % 2) for i in numbers]

    def asked(val: range) -> Result:
        loading = [DataLoader(rows(r), 16) for r in (range(120), val)]
        target = Target(Letters, loading[0], val_loader=loading[1], loss=F.cross_entropy)
        loop = DirectLoop(target, torch.device("cpu"), seed=0)
        return run_check(SplitLeakage, Audit(loop))

    assert asked(range(100, 160)).status is Status.WARN
    assert asked(range(120, 160)).status is Status.PASS


def test_without_validation_rows_there_is_no_question() -> None:
    assert ask(DataLoader(table(slice(None)), 32), None).status is Status.SKIP
    few = ask(*loaders(table(slice(0, 400)), table(slice(400, 404))))
    assert few.status is Status.INCONCLUSIVE


def test_files_listed_on_both_sides_fail(tmp_path: Path) -> None:
    for i in range(60):
        np.save(tmp_path / f"{i}.npy", np.random.default_rng(i).normal(size=6).astype("f4"))

    class Files(Dataset):
        def __init__(self, numbers: range, transform: Callable[[Tensor], Tensor] | None) -> None:
            self.samples = [(str(tmp_path / f"{i}.npy"), i % 2) for i in numbers]
            self.transform = transform

        def __len__(self) -> int:
            return len(self.samples)

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            path, label = self.samples[i]
            x = torch.tensor(np.load(path))
            return (self.transform(x) if self.transform else x), label

    assert ask(*loaders(Files(range(50), noisy), Files(range(35, 60), None))).status is Status.FAIL
    assert ask(*loaders(Files(range(40), noisy), Files(range(40, 60), None))).status is Status.PASS


# --- groups -------------------------------------------------------------------------------------


class Scans(Dataset):
    """Five scans of each of 40 patients, whose diagnosis is the patient's."""

    def __init__(self, known: bool = False) -> None:
        self.patient_ids = [f"p{i // 5:03}" for i in range(200)]
        self.known = known

    def __len__(self) -> int:
        return 200

    def __getitem__(self, i: int) -> Any:
        x = torch.randn(6, generator=torch.Generator().manual_seed(i))
        label = (i // 5) % 2
        return (x, torch.tensor(i // 5), label) if self.known else (x, label)


def by_scan() -> tuple[list[int], list[int]]:
    rows = torch.randperm(200, generator=torch.Generator().manual_seed(0)).tolist()
    return rows[:150], rows[150:]


def test_scans_of_one_patient_on_both_sides_warn() -> None:
    data = Scans()
    train, val = (Subset(data, rows) for rows in by_scan())
    result = ask(*loaders(train, val))
    assert result.status is Status.WARN
    assert "of a patient" in result.message and "patient_ids" in result.message


def test_patients_on_one_side_each_pass() -> None:
    data = Scans()
    assert ask(*loaders(Subset(data, range(150)), Subset(data, range(150, 200)))).status in SILENT


def test_a_network_that_is_told_the_patient_is_meant_for_those_it_knows() -> None:
    data = Scans(known=True)
    train, val = (Subset(data, rows) for rows in by_scan())
    assert ask(*loaders(train, val)).status in SILENT


# --- near copies --------------------------------------------------------------------------------


def pictures_made_of(sources: int, copies: int, mirrored: bool = False) -> Tensor:
    """Noisy copies of each of some pictures, dealt at random."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(sources, 1, 8, 8, generator=g).repeat_interleave(copies, 0)
    if mirrored:
        x[::2] = x[::2].flip(-1)
    x = x + 0.01 * torch.randn(x.shape, generator=g)
    return x[torch.randperm(len(x), generator=g)]


@pytest.mark.parametrize("mirrored", [False, True])
def test_pictures_augmented_before_the_split_warn(mirrored: bool) -> None:
    x = pictures_made_of(75, 4, mirrored)
    y = torch.arange(300) % 2
    result = ask(*loaders(TensorDataset(x[:230], y[:230]), TensorDataset(x[230:], y[230:])))
    assert result.status is Status.WARN, result.message
    assert "near copies" in result.message


@pytest.mark.parametrize(("sources", "status"), [(75, Status.WARN), (300, Status.PASS)])
def test_signals_with_noise_added_before_the_split_warn(sources: int, status: Status) -> None:
    x = pictures_made_of(sources, 300 // sources).reshape(300, 2, 32)
    y = torch.arange(300) % 2
    train, val = TensorDataset(x[:230], y[:230]), TensorDataset(x[230:], y[230:])
    result = ask(*loaders(train, val))
    assert result.status is status, result.message


def test_pictures_of_their_own_pass() -> None:
    x, y = pictures_made_of(300, 1), torch.arange(300) % 2
    train, val = TensorDataset(x[:230], y[:230]), TensorDataset(x[230:], y[230:])
    assert ask(*loaders(train, val)).status in SILENT


def test_discs_somewhere_are_near_each_other_and_no_copies() -> None:
    g = torch.Generator().manual_seed(0)
    centre = 3 + 10 * torch.rand(400, 2, 1, 1, generator=g)
    axis = torch.arange(16.0)
    distance = (axis[:, None] - centre[:, 0]).square() + (axis[None] - centre[:, 1]).square()
    x, y = torch.exp(-distance / 8)[:, None], torch.arange(400) % 2
    train, val = TensorDataset(x[:300], y[:300]), TensorDataset(x[300:], y[300:])
    assert ask(*loaders(train, val)).status in SILENT


SCRIPT = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

torch.manual_seed(0)
x = torch.randn(200, 6)
data = TensorDataset(x, (x[:, 0] > 0).long())
net = nn.Linear(6, 2)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for epoch in range(4):
    generator = torch.Generator().manual_seed({seed})
    train, val = random_split(data, [150, 50], generator)
    for x, y in DataLoader(train, 32, shuffle=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        print(sum((net(x).argmax(1) == y).sum().item() for x, y in DataLoader(val, 50)))
"""


@pytest.mark.parametrize(("seed", "fails"), [("epoch", True), ("0", False)])
def test_a_split_that_is_drawn_in_every_epoch(tmp_path: Path, seed: str, fails: bool) -> None:
    result = ask_script(SplitLeakage, tmp_path / "train.py", SCRIPT.replace("{seed}", seed))
    assert (result.status is Status.FAIL) is fails, result.message
    assert fails is ("anew in every epoch" in result.message)


# --- the statistic --------------------------------------------------------------------------------


def dealt(rng: np.random.Generator, rows: list[int], share: float) -> float:
    held_out = rng.random(len(rows)) < share
    one = [row for row, out in zip(rows, held_out, strict=True) if not out]
    other = [row for row, out in zip(rows, held_out, strict=True) if out]
    return overlap(one, other).p


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_random_dealing_is_rejected_no_more_often_than_its_level(share: float) -> None:
    rng = np.random.default_rng(0)
    pools = (
        [*range(400), *range(30)],
        [*range(200), *range(60), *range(60), *range(20)],
        rng.integers(0, 150, 500).tolist(),
    )
    ps = np.array([dealt(rng, rows, share) for rows in pools for _ in range(400)])
    for level in (0.05, 0.01):
        low, _ = stats.clopper_pearson(int((ps < level).sum()), len(ps), 0.999)
        assert low <= level
    assert (ps < stats.ALPHA).sum() <= 1


@pytest.mark.parametrize("leaked", [0.05, 0.1, 0.3])
def test_power_to_see_a_leak(leaked: float) -> None:
    val = list(range(1000, 1200))
    train = [*range(1000), *range(1000, 1000 + int(200 * leaked))]
    assert overlap(train, val).p < stats.ALPHA


# --- windows --------------------------------------------------------------------------------------


def windows(values: np.ndarray[Any, Any], length: int = 24) -> Tensor:
    cut = np.lib.stride_tricks.sliding_window_view(values, length).copy()
    return torch.tensor(cut, dtype=torch.float32)


def walk(seed: int = 0, steps: int = 600) -> np.ndarray[Any, Any]:
    return np.cumsum(np.random.default_rng(seed).normal(size=steps))


def of(x: Tensor) -> TensorDataset:
    return TensorDataset(x, (x[:, -1] > 0).long())


def test_overlapping_windows_split_at_random_warn() -> None:
    train, val = random_split(of(windows(walk())), [0.8, 0.2], generator=GENERATOR)
    result = ask(*loaders(train, val))
    assert result.status is Status.WARN
    assert "overlap" in result.message


def texts(ids: np.ndarray[Any, Any], size: int = 32) -> TensorDataset:
    rows = torch.tensor(ids[: len(ids) // size * size].reshape(-1, size))
    return TensorDataset(rows, (rows[:, 0] > 20).long())


@pytest.mark.parametrize(
    ("kinds", "seen", "warns"), [(40, 3200, True), (40, 2400, False), (2, 2400, False)]
)
def test_windows_of_one_text(kinds: int, seen: int, warns: bool) -> None:
    """Windows of all of a text beside those of its last part, which begin in between."""
    ids = np.random.default_rng(0).integers(kinds, size=3200)
    result = ask(*loaders(texts(ids[:seen]), texts(ids[817:] if warns else ids[seen:])))
    assert ("overlap" in result.message) is warns


def _square(steps: int) -> np.ndarray[Any, Any]:
    return np.tile(np.repeat([0.0, 1.0], 7), steps)


@pytest.mark.parametrize(
    "make",
    [
        lambda: (windows(walk()[:480]), windows(walk()[480:])),  # a split by time
        lambda: (windows(walk())[:460], windows(walk())[460:]),  # with windows at the seam
        lambda: (windows(walk(1)), windows(walk(2))),
        lambda: (windows(walk())[::24][:18], windows(walk())[::24][18:]),
        lambda: (windows(_square(40)) + 0, windows(_square(9)) + 0),  # which repeats itself
        lambda: (X[:300].repeat(1, 2), X[300:].repeat(1, 2)),  # a table
    ],
)
def test_windows_that_do_not_overlap_are_silent(make: Callable[[], tuple[Tensor, Tensor]]) -> None:
    train, val = make()
    assert "overlap" not in ask(*loaders(of(train), of(val))).message


@pytest.mark.parametrize(("leak", "status"), [(True, Status.FAIL), (False, Status.PASS)])
def test_a_column_of_mean_targets(leak: bool, status: Status) -> None:
    """An area that is encoded by the mean price of its houses, of all or of the training ones."""
    rng = np.random.default_rng(0)
    area, level = rng.integers(0, 120, 900), rng.normal(0, 1, 120)
    price = level[area] + rng.normal(0, 1, 900)
    known = slice(0, 900 if leak else 600)
    sums = np.bincount(area[known], weights=price[known], minlength=120)
    mean = sums / (np.bincount(area[known], minlength=120) + 5)
    x = torch.tensor(np.stack([rng.normal(0, 1, 900), mean[area]], 1), dtype=torch.float32)
    y = torch.tensor(price, dtype=torch.float32)
    sets = TensorDataset(x[:600], y[:600]), TensorDataset(x[600:], y[600:])
    result = ask(*loaders(*sets), loss=lambda output, y: F.mse_loss(output[:, 0], y))
    assert result.status is status, result.message
