"""A few steps, watched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from programs import target
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.loop.direct import DirectLoop
from nnaudit.overview.dynamics import Followed, charts, chosen_layers, follow, predictions
from nnaudit.overview.pictures import _filters_section, _first_filters, overview_of
from nnaudit.state.snapshot import preserved


def followed(**parts: Any) -> Followed:
    found = follow(DirectLoop(target(**parts), torch.device("cpu"), 0))
    assert found is not None
    return found


def data(x: torch.Tensor, y: torch.Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, y), batch_size=16)


def test_layers_have_their_distributions_before_and_after() -> None:
    seen = charts(followed())
    assert [c.title for c in seen[:4]] == [
        "0: weights", "0: biases and gains", "0: activations", "0: gradients",
    ]  # fmt: skip
    for chart in seen:
        assert [series.name for series in chart.series] == ["before", "after"]
        assert all(sum(series.y) == pytest.approx(1.0, abs=1e-3) for series in chart.series)


def test_the_right_class_becomes_likely() -> None:
    curve = predictions(followed())
    assert curve is not None
    assert curve.thresholds == {"chance": pytest.approx(1 / 3)}
    gained = [series.y[-1] - series.y[0] for series in curve.series]
    assert sum(gained) / len(gained) > 0.1


@pytest.mark.parametrize(
    ("y", "loss", "threshold"),
    [
        (torch.randn(64, 1), nn.functional.mse_loss, "correct"),
        (torch.rand(64, 1).round(), nn.functional.binary_cross_entropy_with_logits, "chance"),
    ],
)
def test_numbers_and_yes_or_no(y: torch.Tensor, loss: Any, threshold: str) -> None:
    curve = predictions(
        followed(
            model=lambda: nn.Linear(8, 1),
            train_loader=lambda: data(torch.randn(64, 8), y),
            loss=loss,
        )
    )
    assert curve is not None
    assert threshold in curve.thresholds


def test_of_a_sequence_the_last_prediction_is_shown() -> None:
    ids = torch.randint(0, 9, (64, 6))

    def loss(output: torch.Tensor, aim: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output.flatten(0, 1), aim.flatten())

    model = lambda: nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9))  # noqa: E731
    curve = predictions(followed(model=model, train_loader=lambda: data(ids, ids), loss=loss))
    assert curve is not None
    assert curve.thresholds["chance"] == pytest.approx(1 / 9)


def test_layers_are_chosen_from_the_first_to_the_last() -> None:
    deep = nn.Sequential(*(nn.Linear(4, 4) for _ in range(20)))
    names = list(chosen_layers(deep))
    assert len(names) == 6
    assert (names[0], names[-1]) == ("0", "19")


def test_the_whole_overview_is_small_and_leaves_no_trace() -> None:
    x = torch.randn(64, 1, 8, 8)
    loop = DirectLoop(
        target(
            model=lambda: nn.Sequential(
                nn.Conv2d(1, 8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(128, 64), nn.Linear(64, 3)
            ),
            train_loader=lambda: data(x, torch.arange(64) % 3),
        ),
        torch.device("cpu"), 0,
    )  # fmt: skip
    before = [p.detach().clone() for p in loop.model.parameters()]
    with preserved(loop.subjects):
        overview = overview_of(loop)
    titles = [section.title for section in overview.sections]
    assert any("filters" in title for title in titles)
    assert any("Predictions" in title for title in titles)
    assert len(overview.model_dump_json()) < 300_000
    assert all(torch.equal(a, b) for a, b in zip(before, loop.model.parameters(), strict=True))


def test_a_step_that_raises_leaves_the_rest() -> None:
    def broken(output: Any, aim: Any) -> Any:
        raise ValueError("no")

    loop = DirectLoop(target(loss=broken), torch.device("cpu"), 0)
    assert follow(loop) is None
    assert overview_of(loop).sections[-1].evidence


def test_pictures_say_what_they_show() -> None:
    seen = followed()
    remarks = [chart.remark for chart in charts(seen)]
    assert all(remark.startswith(("Standard deviation", "Half of them")) for remark in remarks)
    curve = predictions(seen)
    assert curve is not None and "rows end nearer to the right answer" in curve.remark


def test_filters_are_shown_where_they_are_pictures_and_twice_where_they_changed() -> None:
    assert _first_filters(nn.Conv2d(1, 2, 3), ()) is None
    before = _first_filters(nn.Conv2d(1, 2, 5), ())
    assert before is not None
    (once,) = _filters_section(before, before * 1.1, 60)
    assert len(once.evidence) == 1
    assert "60 steps changed these by 10% of their size" in once.text
    (twice,) = _filters_section(before, before * 1.5, 60)
    assert len(twice.evidence) == 2
