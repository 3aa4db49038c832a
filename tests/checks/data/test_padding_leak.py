from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader

from nnaudit.checks.data.padding_leak import PaddingLeak
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target

LONGEST = 20


def sentences(n: int = 96) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, LONGEST + 1, (n,), generator=generator).tolist()
    return [torch.randint(1, 30, (k,), generator=generator) for k in lengths]


def padded(rows: list[Tensor], fixed: bool = False, pad: int = 0) -> Tensor:
    made = pad_sequence(rows, batch_first=True, padding_value=pad)
    return F.pad(made, (0, LONGEST - made.shape[1]), value=pad) if fixed else made


def masked(rows: list[Tensor]) -> Any:
    ids = padded(rows)
    return {"ids": ids, "mask": (ids > 0).long(), "labels": labels(rows)}


def fixed_mask(rows: list[Tensor]) -> Any:
    ids = padded(rows, fixed=True)
    return {"ids": ids, "mask": (ids > 0).long(), "labels": labels(rows)}


def with_lengths(rows: list[Tensor]) -> Any:
    return padded(rows), torch.tensor([len(row) for row in rows]), labels(rows)


def ids_only(rows: list[Tensor]) -> Any:
    return padded(rows), labels(rows)


def fixed_ids(rows: list[Tensor]) -> Any:
    return padded(rows, fixed=True), labels(rows)


def labels(rows: list[Tensor]) -> Tensor:
    return torch.tensor([int(row[0]) % 2 for row in rows])


def ask(collate: Any, model: Any, **parts: Any) -> Result:
    loader = DataLoader(sentences(), 16, shuffle=True, collate_fn=collate)
    target = Target(model, lambda: loader, **parts)
    return run_check(PaddingLeak, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


class Attention(nn.Module):
    """An encoder; ``uses`` says which of its two masks it applies."""

    uses = ("attention", "pooling")

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16, padding_idx=0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(16, 2)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            mask = ids != 0
        mask = mask.bool()
        h = self.body(
            self.embed(ids), src_key_padding_mask=~mask if "attention" in self.uses else None
        )
        if "pooling" not in self.uses:
            return self.head(h.mean(1))
        return self.head((h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


class NoMask(Attention):
    uses = ()


class PoolsOverAll(Attention):
    uses = ("attention",)


class AttendsToAll(Attention):
    uses = ("pooling",)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16, padding_idx=0)
        self.read, self.head = nn.GRU(16, 16, batch_first=True), nn.Linear(16, 2)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(
            self.embed(ids), lengths, batch_first=True, enforce_sorted=False
        )
        return self.head(self.read(packed)[1][0])


class LastStep(Recurrent):
    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        return self.head(self.read(self.embed(ids))[0][:, -1])


class StepAtLength(Recurrent):
    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        out = self.read(self.embed(ids))[0]
        return self.head(out[torch.arange(len(ids)), lengths - 1])


@pytest.mark.parametrize(
    ("collate", "model"),
    [
        (masked, Attention),
        (ids_only, Attention),
        (with_lengths, Recurrent),
        (with_lengths, StepAtLength),
    ],
)
def test_networks_that_mask_pass(collate: Any, model: Any) -> None:
    result = ask(collate, model)
    assert result.status is Status.PASS
    assert "the loss stays" in result.message


@pytest.mark.parametrize("model", [NoMask, PoolsOverAll, AttendsToAll])
def test_a_mask_that_is_not_applied_fails(model: Any) -> None:
    for collate in (masked, fixed_mask):
        result = ask(collate, model)
        assert result.status is Status.FAIL
        assert "although batch['mask'], which marks it, is passed to the model" in result.message


def test_the_last_step_of_a_padded_sequence_fails() -> None:
    result = ask(with_lengths, LastStep)
    assert result.status is Status.FAIL
    assert "pack_padded_sequence" in result.fix


def test_a_mask_that_does_not_reach_the_model_fails_where_widths_vary() -> None:
    class Unmasked(NoMask):
        def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(ids)

    assert ask(masked, Unmasked).status is Status.FAIL
    assert ask(fixed_mask, Unmasked).status is Status.WARN


def test_a_pad_id_alone_fails_where_widths_vary_and_is_noted_where_not() -> None:
    assert ask(ids_only, NoMask).status is Status.FAIL
    assert ask(fixed_ids, NoMask).status is Status.NOTE


# --- one output per position ---------------------------------------------------------------------


def tagged(rows: list[Tensor]) -> Any:
    ids = padded(rows)
    return {"ids": ids, "mask": ids > 0, "labels": padded([row % 3 for row in rows], pad=-100)}


def tagged_with_zero(rows: list[Tensor]) -> Any:
    return {**tagged(rows), "labels": padded([row % 3 for row in rows], pad=0)}


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16, padding_idx=0)
        self.read, self.head = nn.GRU(16, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.read(self.embed(ids))[0])


class Backward(Tagger):
    def __init__(self) -> None:
        super().__init__()
        self.read = nn.GRU(16, 8, batch_first=True, bidirectional=True)


class Convolution(Tagger):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(16, 16, 3, padding=1), nn.Conv1d(16, 16, 3, padding=1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(ids).transpose(1, 2)
        return self.head(F.relu(self.second(F.relu(self.first(x)))).transpose(1, 2))


class Packed(Tagger):
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        packed = pack_padded_sequence(
            self.embed(ids), mask.sum(1), batch_first=True, enforce_sorted=False
        )
        return self.head(pad_packed_sequence(self.read(packed)[0], batch_first=True)[0])


def ignoring(logits: Tensor, tags: Tensor) -> Tensor:
    tags = tags[:, : logits.shape[1]]
    return F.cross_entropy(logits.transpose(1, 2), tags, ignore_index=-100)


@pytest.mark.parametrize("model", [Tagger, Backward, Convolution, Packed])
def test_what_seeps_in_at_the_border_is_no_leak(model: Any) -> None:
    result = ask(tagged, model, loss=ignoring)
    assert result.status in (Status.PASS, Status.NOTE), result.message


def test_padding_that_counts_in_the_loss_fails() -> None:
    result = ask(tagged_with_zero, Tagger, loss=ignoring)
    assert result.status is Status.FAIL
    assert "counts in the loss" in result.message
    assert "ignore_index" in result.fix


def test_a_loss_divided_by_the_padded_width_is_noted() -> None:
    def summed(logits: Tensor, tags: Tensor) -> Tensor:
        each = F.cross_entropy(logits.transpose(1, 2), tags, reduction="none", ignore_index=-100)
        return each.mean()

    assert ask(tagged, Tagger, loss=summed).status is Status.NOTE


# --- nothing to see ------------------------------------------------------------------------------


def test_sequences_of_one_length_are_skipped() -> None:
    def cut(rows: list[Tensor]) -> Any:
        ids = torch.stack([row[:3] for row in rows])
        return torch.cat([ids, ids], 1), labels(rows)

    assert ask(cut, Attention).status is Status.SKIP


def test_a_mask_of_missing_values_is_no_padding() -> None:
    def hidden(rows: list[Tensor]) -> Any:
        x = torch.randn(len(rows), 8)
        mask = torch.rand(len(rows), 8) < 0.7
        return {"x": x, "mask": mask, "labels": labels(rows)}

    class Impute(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(16, 2)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.net(torch.cat([x, mask.float()], 1))

    assert ask(hidden, Impute).status is Status.SKIP


def test_cumulative_targets_are_no_mask() -> None:
    """Ordinal classes, as the thresholds that are passed."""

    def ordinal(rows: list[Tensor]) -> Any:
        grade = torch.tensor([len(row) % 6 for row in rows])
        return torch.randn(len(rows), 8), (torch.arange(6) <= grade[:, None]).float()

    result = ask(ordinal, lambda: nn.Linear(8, 6), loss=F.binary_cross_entropy_with_logits)
    assert result.status is Status.SKIP


def test_a_zero_initialised_head_is_asked_after_a_few_steps() -> None:
    class Zero(NoMask):
        def __init__(self) -> None:
            super().__init__()
            nn.init.zeros_(self.head.weight)

    assert ask(masked, Zero).status is Status.FAIL


def test_numbers_with_lengths_are_sequences_too() -> None:
    def numbers(rows: list[Tensor]) -> Any:
        made = pad_sequence([torch.randn(len(row), 4) for row in rows], batch_first=True)
        return made, torch.tensor([len(row) for row in rows]), labels(rows)

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            return self.head(x.mean(1))

    class Right(Mean):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            return self.head(x.sum(1) / lengths[:, None])

    assert ask(numbers, Mean).status is Status.FAIL
    assert ask(numbers, Right).status is Status.PASS
