"""Which rows a loss is given, and which a mask holds out."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnaudit.probes.masked_rows import Tap

N = 60


def split() -> tuple[nn.Linear, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    order = torch.randperm(N)
    train_mask, val_mask = torch.zeros(N, dtype=torch.bool), torch.zeros(N, dtype=torch.bool)
    train_mask[order[:30]] = True
    val_mask[order[30:50]] = True
    return nn.Linear(4, 3), torch.randn(N, 4), torch.randint(3, (N,)), train_mask, val_mask


def summary(tap: Tap) -> list[tuple[str, int, int]]:
    return [(each.name, each.held_out, each.trained) for each in tap.found()]


def test_a_loss_over_all_rows() -> None:
    model, x, y, _, val_mask = split()
    with Tap() as tap:
        F.cross_entropy(model(x), y)
        with torch.no_grad():
            hits = (model(x).argmax(1) == y)[val_mask]
    assert hits.numel() == 20
    assert summary(tap) == [("val_mask", 20, 20)]


def test_a_loss_of_the_training_rows() -> None:
    model, x, y, train_mask, val_mask = split()
    test_idx = (~(train_mask | val_mask)).nonzero().squeeze(1).repeat(2)
    with Tap() as tap:
        F.cross_entropy(model(x)[train_mask], y[train_mask])
        with torch.no_grad():
            model(x)[val_mask].argmax(1).eq(y[val_mask]).float().mean()
            model(x)[test_idx].argmax(1).eq(y[test_idx]).float().mean()
    assert summary(tap) == [("val_mask", 20, 0), ("test_idx", 10, 0)]


def test_rows_without_a_target_are_not_given() -> None:
    model, x, y, train_mask, val_mask = split()
    known = y.clone()
    known[~train_mask] = -1
    with Tap() as tap:
        F.cross_entropy(model(x), known, ignore_index=-1)
        with torch.no_grad():
            known[val_mask].float().mean()
    assert summary(tap) == [("val_mask", 20, 0)]


def test_masks_that_libraries_for_graphs_keep() -> None:
    model, x, y, _, held = split()
    data = SimpleNamespace(y=y, val_mask=held)
    mask = data.val_mask
    del held
    with Tap() as tap:
        F.cross_entropy(model(x), data.y)
        with torch.no_grad():
            data.y[mask].float().mean()
    assert [name for name, *_ in summary(tap)] == ["data.val_mask"]


def test_what_says_nothing_of_a_split() -> None:
    model, x, y, _, val_mask = split()
    of_class = y == 1
    autoencoder = nn.Linear(4, 4)
    with Tap() as tap:
        F.cross_entropy(model(x), y)
        with torch.no_grad():
            model(x)[of_class].mean()
    assert summary(tap) == []
    with Tap() as tap:  # what is learnt is not what is held out
        F.mse_loss(autoencoder(x), x)
        with torch.no_grad():
            y[val_mask].float().mean()
    assert summary(tap) == []
    with Tap() as tap:  # the loss by row: who knows what of it is used
        F.cross_entropy(model(x), y, reduction="none")
        with torch.no_grad():
            y[val_mask].float().mean()
    assert summary(tap) == []
