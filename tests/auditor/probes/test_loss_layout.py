"""How losses over classes read what the last layer has made: mixed, crossed, and as it is meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnaudit.probes.loss_layout import Layout, Tap, layouts

N, C, H, W, T = 4, 3, 6, 8, 10

Loss = Callable[[Tensor, Tensor], Tensor]


def read(model: nn.Module, x: Tensor, y: Tensor, loss: Loss, *, half: bool = False) -> list[Layout]:
    """Return what is wrong with how ``loss`` reads what ``model`` makes of ``x``."""
    tap = Tap([x, y])
    with ExitStack() as stack:
        tap.listen(model, stack)
        stack.enter_context(tap)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            out = model(x)
        loss(out, y).backward()  # type: ignore[no-untyped-call]
    return list(layouts(tuple(tap.found)))


def pictures() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, C, 1))
    return net, torch.randn(N, 1, H, W), torch.randint(C, (N, H, W))


def words(*, time_first: bool = False) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(T, N, 5) if time_first else torch.randn(N, T, 5)
    return nn.Linear(5, C), x, torch.randint(C, (N, T))


def seen_as_rows(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out.reshape(-1, C), y.reshape(-1))


def seen_after_log_softmax(out: Tensor, y: Tensor) -> Tensor:
    return F.nll_loss(F.log_softmax(out, dim=1).view(-1, C), y.view(-1))


def seen_enlarged(out: Tensor, y: Tensor) -> Tensor:
    large = F.interpolate(out, scale_factor=2)
    return F.cross_entropy(large.view(-1, C), y.repeat_interleave(4))


def by_ctc(log_probs: Tensor) -> Tensor:
    ones = torch.ones(N, dtype=torch.long)
    return F.ctc_loss(log_probs, ones[:, None], T * ones, ones)


def test_time_and_batch_that_are_exchanged_by_a_view_for_ctc() -> None:
    net, x, y = words()
    (seen,) = read(net, x, y, lambda out, _: by_ctc(out.log_softmax(-1).view(T, N, C)))
    assert seen.crossed == (N, T)
    assert not read(net, x, y, lambda out, _: by_ctc(out.log_softmax(-1).transpose(0, 1)))
    assert not read(*words(time_first=True), lambda out, _: by_ctc(out.log_softmax(-1)))


@pytest.mark.parametrize("loss", [seen_as_rows, seen_after_log_softmax, seen_enlarged])
def test_pixels_for_classes(loss: Loss) -> None:
    (seen,) = read(*pictures(), loss)
    assert seen.mixed > 0.9
    assert seen.axis == 1
    assert seen.location is None or seen.location.line > 0


def test_two_classes_in_blocks_along_a_line() -> None:
    net = nn.Conv2d(1, 2, 1)
    (seen,) = read(
        net,
        torch.randn(N, 1, H, W),
        torch.randint(2, (N, H, W)),
        lambda out, y: F.cross_entropy(out.view(-1, 2), y.view(-1)),
    )
    assert seen.mixed == 1.0


def test_words_for_classes_and_half_precision() -> None:
    net, x, y = words()
    (seen,) = read(net, x, y, lambda out, y: F.cross_entropy(out.view(N, C, T), y), half=True)
    assert seen.mixed > 0.5
    assert seen.layer == "Linear"


def test_rows_in_one_order_and_targets_in_the_other() -> None:
    (seen,) = read(*words(time_first=True), seen_as_rows)
    assert seen.mixed == 0.0
    assert seen.crossed == (N, T)
    net, x, y = words()
    (seen,) = read(
        net, x, y, lambda out, y: F.cross_entropy(out.transpose(0, 1).reshape(-1, C), y.view(-1))
    )
    assert seen.crossed == (N, T)


def permuted(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out.permute(0, 2, 3, 1).reshape(-1, C), y.reshape(-1))


def as_it_is(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out, y) + F.nll_loss(F.log_softmax(out / 2, 1), y)


def without_the_border(out: Tensor, y: Tensor) -> Tensor:
    inner = out[:, :, 1:-1].permute(0, 2, 3, 1)
    return F.cross_entropy(inner.reshape(-1, C), y[:, 1:-1].reshape(-1))


def smoothed(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(F.avg_pool2d(out, 1) + out.tanh(), y)


@pytest.mark.parametrize("loss", [permuted, as_it_is, without_the_border, smoothed])
def test_pictures_as_they_are_meant(loss: Loss) -> None:
    assert read(*pictures(), loss) == []


def next_words(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out[:, :-1].reshape(-1, C), y[:, 1:].reshape(-1))


def over_time(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out.transpose(1, 2), y)


@pytest.mark.parametrize("loss", [seen_as_rows, next_words, over_time])
def test_words_as_they_are_meant(loss: Loss) -> None:
    assert read(*words(), loss) == []


def turned_with_its_targets(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out.reshape(-1, C), y.t().reshape(-1))


def test_time_first_on_both_sides() -> None:
    assert read(*words(time_first=True), turned_with_its_targets) == []


def meant() -> Iterator[tuple[nn.Module, Tensor, Tensor, Loss]]:
    """Layers whose channels are no classes, or only a part of them."""
    torch.manual_seed(0)
    boxes = nn.Conv2d(1, 2 * C, 1)  # two anchors in each place

    def per_anchor(out: Tensor, y: Tensor) -> Tensor:
        rows = out.permute(0, 2, 3, 1).reshape(-1, C)
        return F.cross_entropy(rows, y.repeat_interleave(2))

    yield boxes, torch.randn(N, 1, H, W), torch.randint(C, (N * H * W,)), per_anchor

    def spans(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out[..., 0], y) + F.cross_entropy(out[..., 1], y)

    yield nn.Linear(5, 2), torch.randn(N, T, 5), torch.randint(T, (N,)), spans

    def choices(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out.view(N, 4), y)

    yield nn.Linear(5, 1), torch.randn(N * 4, 5), torch.randint(4, (N,)), choices

    def both_ways(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y) + F.cross_entropy(out.t(), y)

    yield nn.Linear(5, N), torch.randn(N, 5), torch.arange(N), both_ways

    def pixels_from_patches(out: Tensor, y: Tensor) -> Tensor:
        places = out.view(N, 3, 4, 2, 2, C).permute(0, 5, 1, 3, 2, 4).reshape(N, C, H, W)
        return F.cross_entropy(places, y)

    yield (
        nn.Linear(5, 4 * C),
        torch.randn(N, 12, 5),
        torch.randint(C, (N, H, W)),
        (pixels_from_patches),
    )


@pytest.mark.parametrize("case", list(meant()))
def test_channels_that_are_no_classes(case: tuple[nn.Module, Tensor, Tensor, Loss]) -> None:
    assert read(*case) == []
