"""Healthy programs with awkward loaders, about which the checks of the data have nothing to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)
from torch.utils.data.distributed import DistributedSampler

from nnaudit.checks.base import Check
from nnaudit.checks.data.augmentation import Augmentation
from nnaudit.checks.data.batch_alignment import BatchAlignment
from nnaudit.checks.data.epoch_coverage import EpochCoverage
from nnaudit.checks.data.input_scale import InputScale
from nnaudit.checks.data.padding_leak import PaddingLeak
from nnaudit.checks.data.worker_randomness import WorkerRandomness
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Status
from nnaudit.targets.target import Target

CHECKS: tuple[type[Check], ...] = (
    BatchAlignment, EpochCoverage, WorkerRandomness, Augmentation, InputScale, PaddingLeak,
)  # fmt: skip
SILENT = (Status.PASS, Status.SKIP, Status.INCONCLUSIVE, Status.NOTE)
CLASSES = 3


def mlp(inputs: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, CLASSES))


class Rows(Dataset[Any]):
    def __init__(self, n: int = 120) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(n, 4, generator=generator)
        self.y = torch.randint(CLASSES, (n,), generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.x[i], self.y[i]


# --- which items, in which order -----------------------------------------------------------------


class Shards(IterableDataset[Any]):
    """Each worker reads the shards whose turn it is, shuffled by its own random numbers."""

    def __init__(self) -> None:
        self.shards = [Rows(20 + k) for k in range(6)]

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info is not None else (0, 1)
        for shard in self.shards[first::step]:
            for i in torch.randperm(len(shard)).tolist():
                yield shard.x[i] + shard.y[i], shard.y[i]


def sharded_stream() -> Target:
    return Target(mlp, lambda: DataLoader(Shards(), 16, num_workers=2))


class Crops(IterableDataset[Any]):
    """Pieces of a text from anywhere, without end."""

    def __iter__(self) -> Iterator[Any]:
        text = torch.arange(5000) * 7919 % 50
        while True:
            start = int(torch.randint(0, 4900, ()))
            yield text[start : start + 16], text[start + 1 : start + 17]


class Letters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.read = nn.Embedding(50, 16), nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, 50)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.read(self.embed(x))[0]).transpose(1, 2)


def endless_crops() -> Target:
    return Target(Letters, lambda: DataLoader(Crops(), 16), loss=F.cross_entropy)


class PerClass(Sampler[list[int]]):
    """P classes with K items each, as for metric learning."""

    def __init__(self, labels: Tensor) -> None:
        self.by_class = [(labels == c).nonzero().flatten() for c in range(CLASSES)]

    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(10):
            chosen = torch.randperm(CLASSES)[:2].tolist()
            drawn = [self.by_class[c][torch.randint(len(self.by_class[c]), (4,))] for c in chosen]
            yield torch.cat(drawn).tolist()


def classes_and_items() -> Target:
    data = Rows()
    return Target(mlp, lambda: DataLoader(data, batch_sampler=PerClass(data.y)))


def rare_classes_more_often() -> Target:
    data = Rows()
    weights = 1.0 / torch.bincount(data.y)[data.y].float()
    return Target(mlp, lambda: DataLoader(data, 16, sampler=WeightedRandomSampler(weights, 120)))


def one_rank_of_four() -> Target:
    data = Rows()
    return Target(mlp, lambda: DataLoader(data, 8, sampler=DistributedSampler(data, 4, 2)))


def split_by_samplers() -> Target:
    data, order = Rows(), np.random.default_rng(0).permutation(120)
    train = DataLoader(data, 16, sampler=SubsetRandomSampler(order[:90].tolist()))
    val = DataLoader(data, 30, sampler=SubsetRandomSampler(order[90:].tolist()))
    return Target(mlp, lambda: train, val_loader=val)


def part_of_a_part_of_many() -> Target:
    data = Subset(Subset(ConcatDataset([Rows(80), Rows(60)]), range(0, 140, 2)), range(64))
    return Target(mlp, lambda: DataLoader(data, 16, shuffle=True))


class Virtual(Dataset[Any]):
    """More items than could ever be read, made from their number."""

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, i: int) -> Any:
        generator = torch.Generator().manual_seed(i)
        x = torch.randn(4, generator=generator)
        return x, int(x.sum() > 0)


def made_from_its_number() -> Target:
    data = Virtual()
    sampler = RandomSampler(data, replacement=True, num_samples=256)
    return Target(mlp, lambda: DataLoader(data, 16, sampler=sampler))


class InMemory:
    """No DataLoader: permutes its rows anew in each epoch; the last few do not fill a batch."""

    def __iter__(self) -> Iterator[Any]:
        rows = Rows()
        order = torch.randperm(120)
        for start in range(0, 112, 16):
            chosen = order[start : start + 16]
            yield rows.x[chosen], rows.y[chosen]


def loader_of_ones_own() -> Target:
    return Target(mlp, lambda: InMemory())  # noqa: PLW0108


# --- random numbers ------------------------------------------------------------------------------


class RandomNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.from_numpy(np.random.normal(size=4)).float()


class Noisy(Rows):
    """Noise from NumPy's global generator, which torch seeds in each worker."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = RandomNoise()

    def __getitem__(self, i: int) -> Any:
        return self.transform(self.x[i]), self.y[i]


def global_noise_in_workers() -> Target:
    loader = DataLoader(Noisy(), 16, shuffle=True, num_workers=2)
    return Target(mlp, lambda: loader, val_loader=DataLoader(Rows(40), 20))


class OwnGenerator(Rows):
    """Asks for the worker's seed when it first needs a random number."""

    rng: np.random.Generator | None = None

    def __getitem__(self, i: int) -> Any:
        if self.rng is None:
            info = get_worker_info()
            self.rng = np.random.default_rng(None if info is None else info.seed)
        return self.x[i] + 0.1 * float(self.rng.normal()), self.y[i]


def generator_made_in_the_worker() -> Target:
    loader = DataLoader(OwnGenerator(), 16, shuffle=True, num_workers=2, persistent_workers=True)
    return Target(mlp, lambda: loader)


class Cached(Rows):
    """Computes an item once; nothing about it is random."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[int, Any] = {}

    def __getitem__(self, i: int) -> Any:
        if i not in self.cache:
            self.cache[i] = self.x[i].tanh(), self.y[i]
        return self.cache[i]


def cached_items() -> Target:
    data = Cached()
    return Target(mlp, lambda: DataLoader(data, 16, shuffle=True), val_loader=DataLoader(data, 16))


def mixed_in_the_collate_function() -> Target:
    def collate(items: list[Any]) -> Any:
        x = torch.stack([x for x, _ in items])
        y = F.one_hot(torch.stack([y for _, y in items]), CLASSES).float()
        order, share = torch.randperm(len(x)), float(np.random.beta(0.4, 0.4))
        return x.lerp(x[order], share), y.lerp(y[order], share)

    loader = DataLoader(Rows(), 16, shuffle=True, collate_fn=collate, num_workers=2)
    return Target(mlp, lambda: loader, loss=F.cross_entropy, val_loader=DataLoader(Rows(40), 20))


# --- the form of a batch -------------------------------------------------------------------------


@dataclass
class Both:
    x: Tensor
    y: Tensor
    names: list[str]


class Opaque:
    """A batch of the user's own class, moved by its own method."""

    def __init__(self, items: list[Any]) -> None:
        self.x, self.y = (torch.stack(parts) for parts in zip(*items, strict=True))

    def to(self, device: Any) -> Opaque:
        return self


def step_on_object(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch.x), batch.y)


def objects() -> Target:
    loader = DataLoader(Rows(), 16, shuffle=True, collate_fn=Opaque)
    return Target(mlp, lambda: loader, training_step=step_on_object)


def dataclasses_with_names() -> Target:
    def collate(items: list[Any]) -> Both:
        x, y = (torch.stack(parts) for parts in zip(*items, strict=True))
        return Both(x, y, [f"row {k}" for k in range(len(items))])

    loader = DataLoader(Rows(), 16, shuffle=True, collate_fn=collate)
    return Target(mlp, lambda: loader, training_step=step_on_object)


class Columns(Rows):
    """Answers many indices at once, with dictionaries of lists, as tables of text do."""

    def __getitem__(self, i: int) -> Any:
        return {"x": self.x[i].tolist(), "labels": int(self.y[i]), "text": f"row {i}"}

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[i] for i in indices]


def dictionaries_of_lists() -> Target:
    def collate(items: list[Any]) -> Any:
        return {
            "x": torch.tensor([item["x"] for item in items]),
            "labels": torch.tensor([item["labels"] for item in items]),
            "text": [item["text"] for item in items],
        }

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    return Target(Net, lambda: DataLoader(Columns(), 16, shuffle=True, collate_fn=collate))


class Prebatched(Rows):
    """Every item is a batch, the last one a short one."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Any:
        return self.x[16 * i : 16 * i + 16], self.y[16 * i : 16 * i + 16]


def batches_from_the_data_set() -> Target:
    return Target(mlp, lambda: DataLoader(Prebatched(), batch_size=None, shuffle=True))


def episodes() -> Target:
    """Five labelled examples beside fifteen to be labelled by the nearest of them."""

    def episode(items: list[Any]) -> Any:
        x, y = (torch.stack(parts) for parts in zip(*items, strict=True))
        return (x[:5], y[:5]), (x[5:], y[5:])

    def step(model: nn.Module, batch: Any) -> Tensor:
        (a, labels), (b, answers) = batch
        distance = torch.cdist(model(b), model(a))
        scores = torch.full((len(b), CLASSES), -1e4).scatter_reduce(
            1, labels.expand(len(b), -1), -distance, "amax"
        )
        return F.cross_entropy(scores, answers)

    loader = DataLoader(Rows(), 20, shuffle=True, collate_fn=episode)
    return Target(mlp, lambda: loader, training_step=step)


def several_crops() -> Target:
    def crops(items: list[Any]) -> list[Tensor]:
        x = torch.stack([x for x, _ in items])
        return [x + 0.1 * torch.randn_like(x) for _ in range(2)] + [x[:, :2].repeat(3, 1)]

    def step(model: nn.Module, batch: Any) -> Tensor:
        one, two, small = (F.log_softmax(model(F.pad(x, (0, 4 - x.shape[1]))), 1) for x in batch)
        return -(one.exp().detach() * two).sum(1).mean() + 0.1 * small.exp().square().sum(1).mean()

    loader = DataLoader(Rows(), 16, shuffle=True, collate_fn=crops)
    return Target(mlp, lambda: loader, training_step=step)


# --- sequences -----------------------------------------------------------------------------------


def sentences(n: int = 96) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(1, 30, (3 + int(torch.randint(15, (), generator=generator)),))
        for _ in range(n)
    ]


def first_word(rows: list[Tensor]) -> Tensor:
    return torch.tensor([int(row[0]) % CLASSES for row in rows])


def packed_by_the_collate_function() -> Target:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.read = nn.Embedding(30, 8), nn.LSTM(8, 8)
            self.head = nn.Linear(8, CLASSES)

        def forward(self, packed: Any) -> Tensor:
            ids, lengths = pad_packed_sequence(packed)
            out = self.read(self.embed(ids))[0]
            return self.head(out[lengths - 1, torch.arange(len(lengths))])

    def collate(rows: list[Tensor]) -> Any:
        return pack_sequence(rows, enforce_sorted=False), first_word(rows)

    def step(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    loader = DataLoader(sentences(), 16, shuffle=True, collate_fn=collate)
    return Target(Reader, lambda: loader, training_step=step)


class Masked(nn.Module):
    """Attends to words only, and is told which these are."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16, padding_idx=0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.bool()
        h = self.body(self.embed(input_ids), src_key_padding_mask=~mask)
        return self.head((h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


def padded_on_the_left() -> Target:
    def collate(rows: list[Tensor]) -> Any:
        ids = pad_sequence([row.flip(0) for row in rows], batch_first=True).flip(1)
        return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": first_word(rows)}

    return Target(Masked, lambda: DataLoader(sentences(), 16, shuffle=True, collate_fn=collate))


def time_comes_first() -> Target:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.read = nn.Embedding(30, 8), nn.GRU(8, 8)
            self.head = nn.Linear(8, CLASSES)

        def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
            out = self.read(self.embed(ids))[0]
            return self.head(out[lengths - 1, torch.arange(len(lengths))])

    def collate(rows: list[Tensor]) -> Any:
        lengths = torch.tensor([len(row) for row in rows])
        return pad_sequence(rows), lengths, first_word(rows)

    return Target(Reader, lambda: DataLoader(sentences(), 16, shuffle=True, collate_fn=collate))


def translation() -> Target:
    """Two widths, teacher forcing, padding left out of attention and loss."""

    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(30, 16, padding_idx=0), nn.Linear(16, 30)
            self.body = nn.Transformer(16, 2, 1, 1, 32, 0.1, batch_first=True)

        def forward(self, source: Tensor, target: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
            out = self.body(
                self.embed(source), self.embed(target), tgt_mask=mask,
                src_key_padding_mask=source == 0, memory_key_padding_mask=source == 0,
            )  # fmt: skip
            return self.head(out)

    def collate(rows: list[Tensor]) -> Any:
        target = pad_sequence([row.flip(0)[: len(row) - 1] for row in rows], batch_first=True)
        return pad_sequence(rows, batch_first=True), target

    def step(model: nn.Module, batch: Any) -> Tensor:
        source, target = batch
        logits = model(source, target[:, :-1])
        return F.cross_entropy(logits.transpose(1, 2), target[:, 1:], ignore_index=0)

    loader = DataLoader(sentences(), 16, shuffle=True, collate_fn=collate)
    return Target(Translator, lambda: loader, training_step=step)


def raw_sound() -> Target:
    """Sixteen-bit samples, scaled in the network."""

    class Listener(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv1d(1, 8, 9, 4), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
                nn.Linear(8, CLASSES),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.float().unsqueeze(1) / 32768)

    wave = (20000 * torch.sin(torch.arange(64) * torch.rand(96, 1))).to(torch.int16)
    data = TensorDataset(wave, torch.arange(96) % CLASSES)
    return Target(Listener, lambda: DataLoader(data, 16, shuffle=True))


def one_at_a_time() -> Target:
    return Target(mlp, lambda: DataLoader(Rows(40), 1, shuffle=True, drop_last=True))


def a_few_of_a_stream() -> Target:
    class Few(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            rows = Rows()
            return ((rows.x[i], rows.y[i]) for i in islice(torch.randperm(120).tolist(), 50))

    return Target(mlp, lambda: DataLoader(Few(), 16))


@pytest.mark.parametrize(
    "program",
    [
        sharded_stream, endless_crops, classes_and_items, rare_classes_more_often,
        one_rank_of_four, split_by_samplers, part_of_a_part_of_many, made_from_its_number,
        loader_of_ones_own, global_noise_in_workers, generator_made_in_the_worker, cached_items,
        mixed_in_the_collate_function, objects, dataclasses_with_names, dictionaries_of_lists,
        batches_from_the_data_set, episodes, several_crops, packed_by_the_collate_function,
        padded_on_the_left, time_comes_first, translation, raw_sound, one_at_a_time,
        a_few_of_a_stream,
    ],
    ids=lambda program: program.__name__,
)  # fmt: skip
def test_nothing_is_found(program: Callable[[], Target]) -> None:
    audit = Audit(DirectLoop(program(), torch.device("cpu"), seed=0))
    answers = [run_check(check, audit) for check in CHECKS]
    loud = [f"{a.code} {a.status}: {a.message}" for a in answers if a.status not in SILENT]
    assert not loud
