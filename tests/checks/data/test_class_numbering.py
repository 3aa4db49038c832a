"""DATA118: classes that validation numbers differently."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from nnaudit.checks.data.class_numbering import ClassNumbering, renumbering
from nnaudit.context import Audit
from nnaudit.loop.losses import LossCall
from nnaudit.measure.eval_result import EvalResult
from nnaudit.probes.first_steps import FirstSteps
from nnaudit.probes.training_run import EvalPoint, Training, TrainingRun
from nnaudit.report import Result, Status


def labels(classes: int = 5, rows: int = 40) -> Tensor:
    return torch.arange(classes).repeat_interleave(rows)


def said(truth: Tensor, *, wrong: int = 0, classes: int = 5) -> Tensor:
    """Predictions of ``truth`` of which every ``wrong``-th row is off by one."""
    off = torch.arange(len(truth)) % wrong == 0 if wrong else torch.zeros_like(truth).bool()
    return torch.where(off, (truth + 1) % classes, truth)


def seen(predicted: Tensor, wanted: Tensor) -> EvalResult:
    logits = F.one_hot(predicted, 5).float()
    arguments: dict[str, Any] = {"input": logits, "target": wanted, "ignore_index": -100}
    call = LossCall("cross_entropy", F.cross_entropy, arguments, F.cross_entropy(logits, wanted))
    return EvalResult((1.0,), (call,))


def judged(train: EvalResult, val: EvalResult) -> Result:
    training = Training(
        (1.0,), (0.1,), (0,), (1,), {}, math.nan, (), (), False, (EvalPoint(1, train, val),)
    )
    loop = SimpleNamespace(locate=lambda thing: None, val_loader=None)
    first = SimpleNamespace(
        steps=[SimpleNamespace(observation=SimpleNamespace(loss_calls=list(val.calls)))]
    )
    measured = {TrainingRun: training, FirstSteps: first}
    audit = SimpleNamespace(probe=measured.__getitem__, loop=loop)
    return ClassNumbering().run(cast(Audit, audit))


PERMUTED = torch.tensor([3, 0, 1, 4, 2])


def test_a_permutation_in_validation_alone_fails_and_is_printed() -> None:
    truth = labels()
    result = judged(seen(truth, truth), seen(said(PERMUTED[truth], wrong=5), truth))
    assert result.status is Status.FAIL
    assert "label 0 is 3, 1 is 0, 2 is 1, 3 is 4, 4 is 2" in result.message


def test_two_classes_that_change_places_are_a_warning() -> None:
    truth = labels()
    swapped = torch.tensor([1, 0, 2, 3, 4])[truth]
    assert judged(seen(truth, truth), seen(swapped, truth)).status is Status.WARN


def test_errors_that_prefer_a_class_are_no_renumbering() -> None:
    truth = labels()
    for predicted in (said(truth, wrong=3), torch.zeros_like(truth), truth.clamp(max=3)):
        assert judged(seen(truth, truth), seen(predicted, truth)).status is Status.PASS
    assert renumbering(PERMUTED[truth][::8], truth[::8]) is None  # too few rows of each


def test_without_training_that_has_learnt_its_own_numbers_nothing_is_said() -> None:
    truth = labels()
    val = seen(PERMUTED[truth], truth)
    assert judged(seen(PERMUTED[truth], truth), val).status is Status.INCONCLUSIVE
    assert judged(EvalResult(), val).status is Status.INCONCLUSIVE


def test_a_training_without_classes_has_no_numbers_of_theirs() -> None:
    values = torch.linspace(0.0, 1.0, 40)[:, None]
    call = LossCall("mse", F.mse_loss, {"input": values, "target": values}, torch.zeros(()))
    regression = EvalResult((1.0,), (call,))
    result = judged(regression, regression)
    assert result.status is Status.SKIP
    assert "No loss of the training takes classes" in result.message


def test_a_loss_of_two_scores_has_no_classes() -> None:
    arguments = {"input1": torch.ones(4), "input2": torch.zeros(4), "target": torch.ones(4)}
    call = LossCall("margin_ranking", F.margin_ranking_loss, arguments, torch.zeros(()))
    ranked = EvalResult((1.0,), (call,))
    assert judged(ranked, ranked).status is Status.SKIP
