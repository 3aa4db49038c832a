from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, random_split

from nnaudit.checks.data.augmentation import Augmentation
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.probes.moved_pictures import LeftBehind, MovedPictures
from nnaudit.probes.refetch import Refetch, Refetched, Repeat
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target
from support.verdicts import ask_script, verdict


class RandomShift(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(())


class RandomSign:
    """No module: whether it is called cannot be seen."""

    def __call__(self, x: Tensor) -> Tensor:
        return x * (1 if torch.rand(()) < 0.5 else -1)


class Images(Dataset[Any]):
    def __init__(self, transform: Any = None, n: int = 100) -> None:
        self.x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return (self.x[i] if self.transform is None else self.transform(self.x[i])), i % 2


class SeededByIndex(Images):
    def __getitem__(self, i: int) -> Any:
        torch.manual_seed(i)
        return super().__getitem__(i)


class Cached(Images):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.cache: dict[int, Any] = {}

    def __getitem__(self, i: int) -> Any:
        if i not in self.cache:
            self.cache[i] = super().__getitem__(i)
        return self.cache[i]


class Precomputed(Images):
    """Features were computed once; the images' transform is still there."""

    def __getitem__(self, i: int) -> Any:
        return self.x[i], i % 2


class Denoising(Images):
    def __getitem__(self, i: int) -> Any:
        return self.x[i] + torch.randn(4), self.x[i]


class Masked(Images):
    def __getitem__(self, i: int) -> Any:
        hidden = torch.rand(4) < 0.5
        return self.x[i].masked_fill(hidden, 0.0), int(hidden.sum()) % 2


def ask(train: Any, val: Any = None, outputs: int = 2, **settings: Any) -> Result:
    loader = DataLoader(train, 16, shuffle=True, **settings)
    other = val if val is None or isinstance(val, list) else DataLoader(val, 16)
    target = Target(lambda: nn.Linear(4, outputs), lambda: loader, val_loader=other)
    return run_check(Augmentation, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


def test_augmented_training_and_plain_validation_pass() -> None:
    result = ask(Images(RandomShift()), Images())
    assert result.status is Status.PASS
    assert "32 of 32 training items" in result.message


def test_a_split_that_shares_the_transform_is_warned_of() -> None:
    train, val = random_split(Images(RandomShift()), [80, 20])
    result = ask(train, val)
    assert result.status is Status.WARN
    assert "20 of 20 validation items" in result.message
    assert "RandomShift" in result.message


def test_subsets_with_transforms_of_their_own_pass() -> None:
    train = Subset(Images(RandomShift()), range(80))
    assert ask(train, Subset(Images(), range(80, 100))).status is Status.PASS


def test_validation_without_an_index_is_read_twice() -> None:
    class Noisy(list[Any]):
        def __iter__(self) -> Any:
            return ((x + torch.randn(4), y) for x, y in super().__iter__())

    fixed = [(torch.randn(16, 4), torch.arange(16) % 2) for _ in range(3)]
    assert ask(Images(RandomShift()), Noisy(fixed)).status is Status.WARN
    assert ask(Images(RandomShift()), fixed).status is Status.PASS


@pytest.mark.parametrize(("data", "outputs"), [(Denoising(), 4), (Masked(), 2)])
def test_a_task_made_up_on_the_spot_is_noted(data: Any, outputs: int) -> None:
    assert ask(data, data, outputs).status is Status.NOTE


@pytest.mark.parametrize("kind", [SeededByIndex, Cached])
def test_random_transforms_that_repeat_are_warned_of(kind: Any) -> None:
    result = ask(kind(RandomShift()))
    assert result.status is Status.WARN
    assert "RandomShift is declared" in result.message


def at_random(x: Tensor) -> Tensor:
    return x + torch.randn(())


@pytest.mark.parametrize(("seeded", "status"), [(at_random, "warn"), (None, "skip")])
def test_items_that_seed_before_they_draw_are_warned_of(seeded: Any, status: str) -> None:
    result = ask(SeededByIndex(seeded))
    assert result.status == status, result.message
    assert ("torch.manual_seed() is called for each" in result.message) is (status == "warn")


def test_transforms_that_are_not_called_are_noted() -> None:
    assert ask(Precomputed(RandomShift())).status is Status.NOTE


def test_a_flip_of_half_the_items_is_seen() -> None:
    assert ask(Images(RandomSign()), Images()).status is Status.PASS


def test_without_any_chance_there_is_nothing_to_ask() -> None:
    assert ask(Images(), Images()).status is Status.SKIP


def test_mixing_in_the_collate_function_is_augmentation() -> None:
    def mixed_up(items: list[Any]) -> Any:
        x = torch.stack([x for x, _ in items])
        order = torch.randperm(len(x))
        return x.lerp(x[order], float(torch.rand(()))), torch.tensor([y for _, y in items])

    assert ask(Images(), Images(), collate_fn=mixed_up).status is Status.PASS


def with_neighbours(items: list[Any]) -> Any:
    x, y = torch.stack([x for x, _ in items]), torch.tensor([y for _, y in items])
    return (x, x + torch.randn_like(x)), y


class Beside(Images):
    """Something random in the items, beside a part that stays."""

    def __getitem__(self, i: int) -> Any:
        return (self.x[i], torch.randn(4)), i % 2


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.cat([a, b], 1))


@pytest.mark.parametrize(
    ("data", "collate", "status"),
    [(Images(), with_neighbours, Status.NOTE), (Beside(), None, Status.WARN)],
)
def test_what_collating_samples_beside_an_item_is_noted(
    data: Images, collate: Any, status: Status
) -> None:
    loader = DataLoader(data, 8, collate_fn=collate)
    target = Target(TwoInputs, loader, DataLoader(data, 8, collate_fn=collate))
    audit = Audit(DirectLoop(target, torch.device("cpu"), 0))
    assert run_check(Augmentation, audit).status is status


def test_a_stream_is_inconclusive() -> None:
    batches = [(torch.randn(16, 4), torch.arange(16) % 2)] * 4
    target = Target(lambda: nn.Linear(4, 2), lambda: batches)
    audit = Audit(DirectLoop(target, torch.device("cpu"), seed=0))
    assert run_check(Augmentation, audit).status is Status.INCONCLUSIVE


MIXED = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

x, y = torch.randn(96, 4), torch.arange(96) % 3
train = DataLoader(TensorDataset(x[:64], y[:64]), batch_size=16, shuffle=True)
val_loader = DataLoader(TensorDataset(x[64:], y[64:]), batch_size=16)
model = nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(9):
    for a, b in train:
        share, order = torch.rand(()), torch.randperm(len(a))
        out = model(share * a + (1 - share) * a[order])
        loss = nn.functional.cross_entropy(out, b) * share
        loss = loss + nn.functional.cross_entropy(out, b[order]) * (1 - share)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def test_what_the_script_does_to_a_batch_is_no_change_of_the_items(tmp_path: Path) -> None:
    result = ask_script(Augmentation, tmp_path / "train.py", MIXED)
    assert result.status is Status.SKIP, result.message


# --- pictures that move ---------------------------------------------------------------------------


class Squares(Dataset[Any]):
    """A bright square on a noisy ground, with its mask or its box; flipped at random."""

    def __init__(self, n: int, masks: bool, flipped: str = "", seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.pictures = torch.rand(n, 1, 16, 16, generator=g)
        self.masks = torch.zeros(n, 16, 16, dtype=torch.long)
        self.boxes = torch.zeros(n, 4)
        for i, (top, left) in enumerate(torch.randint(0, 11, (n, 2), generator=g).tolist()):
            self.masks[i, top : top + 5, left : left + 5] = 1
            self.boxes[i] = torch.tensor([left, top, left + 5, top + 5]) / 16
        self.pictures += 2.0 * self.masks[:, None]
        self.targets, self.flipped = (self.masks if masks else self.boxes), flipped

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> Any:
        picture, target = self.pictures[i], self.targets[i].clone()
        if self.flipped and torch.rand(()) < 0.5:
            picture = picture.flip(-2 if self.flipped == "other axis" else -1)
            if self.flipped == "inside out":
                target[[0, 2]] = 1 - target[[0, 2]]
            elif self.flipped != "picture":
                if target.ndim == 2:
                    target = target.flip(-1)
                else:
                    target[[0, 2]] = 1 - target[[2, 0]]
        return picture, target


class Segmenter(nn.Module):
    def __init__(self, masks: bool) -> None:
        super().__init__()
        self.net = (
            nn.Conv2d(1, 2, 1) if masks else nn.Sequential(nn.Flatten(), nn.Linear(16 * 16, 4))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "boxes"])
@pytest.mark.parametrize("flipped", ["picture", "both"])
def test_a_flip_that_leaves_the_target_where_it_was(masks: bool, flipped: str) -> None:
    target = Target(
        lambda: Segmenter(masks),
        lambda: DataLoader(Squares(64, masks, flipped), 16, shuffle=True),
        val_loader=lambda: DataLoader(Squares(128, masks, seed=1), 32),
        loss=nn.functional.cross_entropy if masks else nn.functional.mse_loss,
    )
    result = run_check(Augmentation, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))
    assert result.status is (Status.FAIL if flipped == "picture" else Status.PASS), result.message
    assert ("mirrored" in result.message) is (flipped == "picture")


@pytest.mark.parametrize("flipped", ["other axis", "inside out"])
def test_a_flip_that_moves_boxes_in_another_way(flipped: str) -> None:
    target = Target(
        lambda: Segmenter(masks=False),
        lambda: DataLoader(Squares(64, False, flipped), 16, shuffle=True),
        val_loader=lambda: DataLoader(Squares(128, False, seed=1), 32),
        loss=nn.functional.mse_loss,
    )
    result = run_check(Augmentation, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))
    assert result.status is Status.FAIL, result.message


def left_behind(**parts: Any) -> LeftBehind:
    return LeftBehind(**{"target": "[1]", "mask": False, "move": "mirrored", "moved": 20,
                         "left": 20, "follows": True, **parts})  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "status"),
    [
        (left_behind(), Status.FAIL),
        (left_behind(mask=True, left=15), Status.FAIL),
        (left_behind(mask=True, follows=None), Status.WARN),
        (left_behind(follows=False), Status.PASS),
        (left_behind(follows=None), Status.PASS),
        (left_behind(left=2), Status.PASS),
        (left_behind(left=0, inverted=12, follows=None), Status.FAIL),
        (left_behind(left=0, inverted=2, follows=None), Status.PASS),
    ],
)
def test_what_is_left_behind_fails_where_it_is_known_to_follow(
    seen: LeftBehind, status: Status
) -> None:
    augmented = Refetched(Repeat(32, 16, 0, True, ()), None)
    assert verdict(Augmentation, {MovedPictures: (seen,), Refetch: augmented}).status is status
