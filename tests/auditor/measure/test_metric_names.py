from __future__ import annotations

import pytest

from nnaudit.measure.metric_names import best_is_one, better_when_higher


@pytest.mark.parametrize(
    ("name", "higher"),
    [
        ("val_acc", True),
        ("valAccuracy", True),
        ("eval_f1", True),
        ("metrics['top_acc5']", True),
        ("map_50", True),
        ("BLEU", True),
        ("val/loss", False),
        ("totalLoss", False),
        ("WER", False),
        ("best_rmse", False),
    ],
)
def test_what_a_name_says(name: str, higher: bool) -> None:
    assert better_when_higher(name) is higher


@pytest.mark.parametrize(
    "name",
    ["score", "accuracy_loss", "neg_loss", "1 - acc", "accuracy_drop", "max(map(len, rows))",
     "pace", "glossary"],
)  # fmt: skip
def test_names_that_say_nothing(name: str) -> None:
    assert better_when_higher(name) is None


@pytest.mark.parametrize("name", ["accuracy", "val_acc", "macroF1", "IoU", "mean_dice", "r2_score"])
def test_metrics_that_are_1_at_best(name: str) -> None:
    assert best_is_one(name)


@pytest.mark.parametrize("name", ["psnr", "inaccuracy", "dice_loss", "iou_distance", "mae"])
def test_metrics_that_are_not(name: str) -> None:
    assert not best_is_one(name)
