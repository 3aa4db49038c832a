"""Which values of a program are metrics of a library's."""

from __future__ import annotations

from typing import Any

import torch

from nnaudit.targets.metrics import library_metrics

LIBRARY = {"__module__": "torchmetrics.classification"}


def metric(update: Any) -> Any:
    same: Any = lambda self: None  # noqa: E731
    return type("Accuracy", (), {**LIBRARY, "update": update, "compute": same, "reset": same})()


def test_what_compares_predictions_with_targets_is_a_metric_under_any_name() -> None:
    comparing = metric(lambda self, preds, target: None)
    averaging = metric(lambda self, value, weight=1.0: None)
    scoring = metric(lambda self, images, real: None)
    held = [("a", averaging), ("val_acc", comparing), ("fid", scoring), ("again", comparing)]
    assert [(m.name, m.function) for m in library_metrics(held)] == [("Accuracy", comparing)]


def test_functions_that_need_nothing_else_are_metrics() -> None:
    from sklearn.metrics import accuracy_score, f1_score

    (found,) = library_metrics([("score", accuracy_score), ("f1", f1_score), ("x", torch.ones(2))])
    output = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert found.value(output, torch.tensor([1, 1])) == {"accuracy_score": 0.5}
