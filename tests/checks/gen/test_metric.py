"""GEN105: metrics that praise the wrong thing, and the ways in which right ones are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score, r2_score
from torch import Tensor, nn
from torchmetrics.classification import MultilabelF1Score

from nnaudit.checks.gen.metric import MetricMeaning
from nnaudit.checks.gen.metric_sample import Sample, _are_trained
from nnaudit.probes.box_forms import BoxForms
from nnaudit.probes.broadcasts import EvalBroadcasts, EvalComparisons, Evaluated
from nnaudit.probes.compared_units import UnitsInValidation
from nnaudit.probes.first_steps import FirstSteps
from nnaudit.probes.metric_functions import MetricFunction, MetricFunctions
from nnaudit.probes.metric_resets import Collected, MetricResets
from nnaudit.probes.training_run import TrainingRun
from nnaudit.report import Location, Result, Status
from nnaudit.targets.metrics import metrics_of, plain
from support.measurements import at_the_end, eval_result, training
from support.programs import target as program
from support.verdicts import ask as trained
from support.verdicts import ask_script, verdict

LOSSES = {"classes": "cross_entropy", "binary": "bce_with_logits", "numbers": "mse"}


def predictions(task: str, share: float = 0.5, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """Outputs for 300 rows that are mostly right, and the targets.

    A class, a yes or no of which ``share`` are no, or a number.
    """
    g = torch.Generator().manual_seed(1)
    x, scatter = torch.randn(300, 3, generator=g), noise * torch.randn(300, 3, generator=g)
    if task == "classes":
        return 3 * (x + scatter), x.argmax(1)
    if task == "numbers":
        return 5 + 2 * x[:, :1] + scatter[:, :1], 5 + 2 * x[:, :1]
    above = x[:, :1] - x[:, :1].quantile(share)
    return 3 * (above + scatter[:, :1]), (above > 0).float()


def judged(
    metric: Any,
    kind: str,
    output: Tensor,
    target: Tensor,
    collected: tuple[Collected, ...] = (),
    functions: tuple[MetricFunction, ...] = (),
    of_one: tuple[Location, ...] = (),
) -> Result:
    """The verdict on a network with such predictions for validation batches of 64."""
    pairs = list(zip(output.split(64), target.split(64), strict=True))
    ended = at_the_end(val=eval_result(kind, pairs))
    unseen = SimpleNamespace(batches=(), observations=())
    run = training([1.0] * 40, moments=ended)
    measured = {
        FirstSteps: unseen,
        EvalBroadcasts: Evaluated(of_one=of_one),
        BoxForms: (),
        UnitsInValidation: (),
        MetricResets: collected,
        MetricFunctions: functions,
        TrainingRun: run,
    }
    return verdict(MetricMeaning, measured, target=program(metric=metric))


def ask(metric: Any, task: str = "classes", share: float = 0.5) -> Result:
    """Ask about the metric of a network that is mostly right."""
    return judged(metric, LOSSES[task], *predictions(task, share))


def accuracy(output: Tensor, target: Tensor) -> float:
    return (output.argmax(1) == target).float().mean().item()


def binary_accuracy(output: Tensor, target: Tensor) -> float:
    return ((output > 0) == target).float().mean().item()


def accuracy_over_columns(output: Tensor, target: Tensor) -> float:
    """Compares every prediction with every target."""
    return (output.argmax(1) == target.unsqueeze(1)).float().mean().item()


def accuracy_of_itself(output: Tensor, target: Tensor) -> float:
    return torch.eq(output.argmax(1), output.argmax(1)).float().mean().item()


def wrong_axis_accuracy(output: Tensor, target: Tensor) -> float:
    return (output.argmax(0)[0] == target).float().mean().item()


def inverted(output: Tensor, target: Tensor) -> float:
    """Finds a few mistakes better than none, and many worse."""
    wrong = (output.argmax(1) != target).float().mean().item()
    return wrong if wrong < 0.3 else wrong - 0.8


@pytest.mark.parametrize(
    "metric", [accuracy_over_columns, accuracy_of_itself, wrong_axis_accuracy, inverted]
)
def test_metrics_that_measure_something_else_fail(metric: Callable[..., Any]) -> None:
    result = ask(metric)
    assert result.status is Status.FAIL, result.message
    assert result.location is None or result.fix


class Running:
    """A metric with a state, of torchmetrics' form."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.right = self.seen = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        self.right += int((output.argmax(1) == target).sum())
        self.seen += len(target)

    def compute(self) -> Tensor:
        return torch.tensor(self.right / max(self.seen, 1))


def accuracy_of_labels(y_true: Tensor, y_pred: Tensor) -> float:
    assert y_pred.shape == y_true.shape
    return (y_pred == y_true).float().mean().item()


def compute_metrics(evaluated: Any) -> dict[str, float]:
    logits, labels = evaluated
    return {"accuracy": float((logits.argmax(-1) == labels).mean())}


def count_of_right(output: Tensor, target: Tensor) -> int:
    return int((output.argmax(1) == target).sum())


def accuracy_in_percent(output: Tensor, target: Tensor) -> float:
    return 100 * accuracy(output, target)


def error_rate(output: Tensor, target: Tensor) -> float:
    return 1 - accuracy(output, target)


@pytest.mark.parametrize(
    "metric",
    [
        accuracy, accuracy_of_labels, compute_metrics, count_of_right, accuracy_in_percent,
        error_rate, Running(), {"accuracy": accuracy, "errors": error_rate}, F.cross_entropy,
    ],
)  # fmt: skip
def test_right_metrics_pass_however_they_are_called(metric: Any) -> None:
    result = ask(metric)
    assert result.status is Status.PASS, result.message


@pytest.mark.parametrize(
    ("metric", "task"),
    [
        (r2_score, "numbers"), (F.l1_loss, "numbers"), (F.mse_loss, "numbers"),
        (binary_accuracy, "binary"),
        (lambda o, t: accuracy_of_labels(t, o.sigmoid().round()), "binary"),
    ],
)  # fmt: skip
def test_right_metrics_of_other_tasks_pass(metric: Any, task: str) -> None:
    result = ask(metric, task)
    assert result.status in (Status.PASS, Status.NOTE), result.message


def macro_f1(output: Tensor, target: Tensor) -> float:
    return float(f1_score(target.numpy(), (output > 0).numpy(), average="macro"))


def test_a_metric_of_a_library_need_not_be_one() -> None:
    """A label that no row has counts as 0 in the mean over labels."""
    output, target = predictions("binary")
    output, target = torch.cat([output, output - 20], 1), F.pad(target, (0, 1))
    metric = MultilabelF1Score(2, average="macro")
    assert judged(metric, "bce_with_logits", output, target).status is Status.PASS


def test_accuracy_alone_on_imbalanced_data_warns() -> None:
    result = ask(binary_accuracy, "binary", share=0.95)
    assert result.status is Status.WARN, result.message
    assert "f1_score" in result.fix


def test_accuracy_beside_another_metric_does_not() -> None:
    metrics = {"accuracy": binary_accuracy, "f1": macro_f1}
    assert ask(metrics, "binary", share=0.95).status is not Status.WARN


def test_mild_imbalance_does_not() -> None:
    assert ask(binary_accuracy, "binary", share=0.7).status is Status.PASS


def test_a_metric_that_depends_on_the_batch_size_is_a_note() -> None:
    result = ask(macro_f1, "binary", share=0.96)
    assert result.status is Status.NOTE, result.message
    assert "batch size" in result.message


def test_without_a_metric_plain_ones_are_shown() -> None:
    result = ask(None)
    assert result.status is Status.SKIP
    assert "balanced accuracy" in result.message
    assert ask(None, "numbers").status is Status.SKIP


def test_labels_that_no_loss_takes_are_nothing_that_an_autoencoder_predicts() -> None:
    pixels, labels = torch.rand(64, 20), torch.arange(64) % 10
    one_hot = F.one_hot(labels, 10).float()
    assert not _are_trained(labels, eval_result("mse", [(pixels, pixels)]).calls)
    assert _are_trained(labels, eval_result("mse", [(torch.rand(64, 10), one_hot)]).calls)
    assert _are_trained(labels, eval_result("cross_entropy", [(pixels, labels)]).calls)
    assert _are_trained(labels, ())


def test_without_a_metric_flattering_accuracy_is_a_note() -> None:
    _, target = predictions("binary", 0.95)
    result = judged(None, "bce_with_logits", torch.full_like(target, -3.0), target)
    assert result.status is Status.NOTE, result.message


def test_a_metric_that_cannot_be_called_is_inconclusive() -> None:
    def metric(output: Any, target: Any) -> float:
        raise KeyError("loss")

    assert ask(metric).status is Status.INCONCLUSIVE


def test_names_that_mean_something_else_do_no_harm() -> None:
    for other in ({"loss": [], "accuracy": []}, "accuracy", torch, [1], nn.Linear, lambda: 1 / 0):
        assert metrics_of(other) == ()


SENSIBLE: dict[str, dict[str, Callable[[Tensor, Tensor], Any]]] = {
    "classes": {
        "accuracy": lambda o, y: (o.argmax(1) == y).float().mean(),
        "errors": lambda o, y: (o.argmax(1) != y).sum(),
        "f1": lambda o, y: plain("classes", o, y)["macro F1"],
        "cross entropy": F.cross_entropy,
    },
    "numbers": {
        "mse": F.mse_loss,
        "mae": lambda o, y: (o - y).abs().mean(),
        "r2": lambda o, y: plain("numbers", o, y)["R2"],
    },
}
SENSELESS: dict[str, dict[str, Callable[[Tensor, Tensor], Any]]] = {
    "classes": {
        "max for argmax": lambda o, y: (o.max(1)[0] == y).float().mean(),
        "accuracy off by one": lambda o, y: (o.argmax(1) + 1 == y).float().mean(),
        "accuracy of half": lambda o, y: (o.argmax(1) == y).float().sum() / (2 * len(y)),
    },
    "numbers": {"no use of the output": lambda o, y: y.mean()},
}


def findings(metrics: dict[str, Callable[..., Any]], task: str, seed: int) -> list[bool]:
    """Whether each metric is found wrong on a random sample of ``task``."""
    g = torch.Generator().manual_seed(seed)
    rows, classes = int(torch.randint(40, 200, (1,), generator=g)), 2 + seed % 4
    if task == "numbers":
        target = torch.randn(rows, 1, generator=g) * 10 ** (seed % 5 - 2) + seed % 3
        output = torch.randn(rows, 1, generator=g)
    else:
        target = torch.rand(rows, generator=g).pow(1 + seed % 3).mul(classes).long()
        output = torch.randn(rows, classes, generator=g)
    sample = Sample(task, ((output, target),), True, 0)  # type: ignore[arg-type]
    audit: Any = SimpleNamespace(loop=SimpleNamespace(locate=lambda _: None))
    found = metrics_of(metrics)
    return [MetricMeaning()._wrong(audit, metric, sample) is not None for metric in found]


@pytest.mark.parametrize("task", ["classes", "numbers"])
@pytest.mark.parametrize(
    "seeds", [range(6), pytest.param(range(6, 60), marks=pytest.mark.exhaustive)]
)
def test_null_rejection_rate_and_power(task: str, seeds: range) -> None:
    """No sensible metric is found wrong on any sample, every senseless one on all."""
    assert not any(any(findings(SENSIBLE[task], task, seed)) for seed in seeds)
    assert all(all(findings(SENSELESS[task], task, seed)) for seed in seeds[::3])


@pytest.mark.parametrize("seed", range(3))
def test_perfect_predictions_are_perfect_by_every_plain_metric(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    target = (torch.rand(64, generator=g) < 0.05).long()
    if target.sum() == 0:
        target[0] = 1
    values = plain("classes", F.one_hot(target, 2).float(), target)
    assert set(values.values()) == {1.0}


def test_plain_metrics_agree_with_scikit_learns() -> None:
    g = torch.Generator().manual_seed(0)
    output, target = torch.randn(200, 4, generator=g), torch.randint(0, 4, (200,), generator=g)
    ours = plain("classes", output, target)
    assert ours["macro F1"] == pytest.approx(f1_score(target, output.argmax(1), average="macro"))
    numbers = plain("numbers", output[:, :1], output[:, 1:2])
    assert numbers["R2"] == pytest.approx(r2_score(output[:, 1], output[:, 0]), rel=1e-5)


SCRIPT = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

x = torch.randn(512, 8)
loader = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=32, shuffle=True)
model = nn.Linear(8, 3)
optimizer = torch.optim.Adam(model.parameters(), lr=0.03)


def metric(output, target):
    return (output.argmax(1) == target{column}).float().mean().item()


for epoch in range(3):
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
"""


@pytest.mark.parametrize(
    ("metric", "status"), [(accuracy_over_columns, Status.FAIL), (accuracy, Status.PASS)]
)
def test_the_metric_of_a_program_that_trains(metric: Any, status: Status) -> None:
    loader = program().train_loader
    result = trained(MetricMeaning, program(metric=metric, val_loader=loader))
    assert result.status is status, result.message


@pytest.mark.parametrize(("column", "status"), [("[:, None]", Status.FAIL), ("", Status.PASS)])
def test_the_metric_of_a_script(tmp_path: Path, column: str, status: Status) -> None:
    result = ask_script(MetricMeaning, tmp_path / "train.py", SCRIPT.replace("{column}", column))
    assert result.status is status, result.message


def test_values_that_describe_are_no_metrics_where_another_value_is() -> None:
    def several(output: Tensor, target: Tensor) -> dict[str, float]:
        share = (output.argmax(1) == 0).float().mean().item()
        return {"count": len(target), "share_of_class_0": share, "acc": accuracy(output, target)}

    assert ask(several).status is Status.PASS
    alone = ask(lambda output, target: {"count": len(target), "share": 0.3})
    assert alone.status is Status.FAIL
    broken = ask(lambda output, target: {**several(output, target), "accuracy": 0.3})
    assert broken.status is Status.FAIL


@pytest.mark.parametrize("name", ["dice_loss", "accuracy_error", "inaccuracy", "acceleration_gap"])
def test_what_is_best_at_zero_is_not_held_to_one(name: str) -> None:
    wrong = ask(lambda output, target: {name: 1 - accuracy(output, target)})
    assert wrong.status is Status.PASS, wrong.message


@pytest.mark.parametrize("name", ["val_acc", "acc1", "mIoU", "BinaryAccuracy", "roc_auc_score"])
def test_what_is_named_for_being_right_is_held_to_one(name: str) -> None:
    halved = ask(lambda output, target: {name: accuracy(output, target) / 2})
    assert halved.status is Status.FAIL


PAIRS = """
import torch
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(320, 6)
y = (x[:, 0] > 0).long()
loader = DataLoader(TensorDataset(x, y), 32, shuffle=True)
model = torch.nn.Linear(6, 1)
criterion = torch.nn.BCEWithLogitsLoss()
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for epoch in range(30):
    hits = 0
    for a, b in loader:
        output = model(a)
        loss = criterion(output.squeeze(1), b.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        hits += COMPARED
"""


@pytest.mark.parametrize(
    ("compared", "fails"),
    [
        ("((output > 0) == b).sum().item()", True),
        ("((output.squeeze(1) > 0) == b).sum().item()", False),
        ("(b[:, None] == torch.arange(32)).sum().item()", False),  # of 32 classes
    ],
)
def test_predictions_compared_with_the_labels_of_all_rows(
    tmp_path: Path, compared: str, fails: bool
) -> None:
    source = PAIRS.replace("COMPARED", compared)
    result = ask_script(MetricMeaning, tmp_path / "train.py", source)
    assert (result.status is Status.FAIL) is fails, result.message
    if fails:
        assert "(32, 1) and (32,)" in result.message


def test_a_metric_that_is_not_reset_fails() -> None:
    found = (Collected("MulticlassAccuracy", (1, 2, 3)),)
    result = judged(accuracy, "cross_entropy", *predictions("classes"), found)
    assert result.status is Status.FAIL
    assert "2 updates after one epoch's end and 3 after the next" in result.message


def test_the_largest_of_one_output_fails() -> None:
    found = (Location(file="train.py", line=7),)
    result = judged(accuracy, "cross_entropy", *predictions("classes"), of_one=found)
    assert result.status is Status.FAIL
    assert "every row is said to be of class 0" in result.message
    assert result.location == found[0]


@pytest.mark.parametrize(("outputs", "found"), [(1, 3), (2, 0)])
def test_the_largest_of_one_output_is_heard(outputs: int, found: int) -> None:
    net = nn.Linear(4, outputs)
    listening = EvalComparisons()
    net.register_forward_pre_hook(listening.called)
    net.register_forward_hook(listening.returned)
    with listening, torch.no_grad():
        logits = net(torch.randn(8, 4))
        assert logits.argmax(1).shape == torch.max(logits, dim=-1)[1].shape
        assert logits.softmax(1).argmax(dim=1).shape == (8,)
        assert logits.max() == logits.flatten()[logits.argmax()]  # over everything
    assert len(listening.of_one) == found


def test_a_probabilitys_threshold_on_logits_is_heard() -> None:
    net, rows = nn.Linear(4, 1), 10 * torch.randn(32, 4)
    listening = EvalComparisons()
    net.register_forward_pre_hook(listening.called)
    net.register_forward_hook(listening.returned)
    with listening, torch.no_grad():
        logits = net(rows)
        assert (torch.sigmoid(logits) > 0.5).equal(logits > 0)
        assert (net(rows / 1e4).clamp(0, 1) >= 0.5).ndim
        assert not listening.halved
        assert (net(rows).squeeze(1).cpu() > 0.5).shape == torch.ge(net(rows), 0.5)[:, 0].shape
    assert len(listening.halved) == 2


HALVED = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
x = torch.randn(256, 4)
y = (x[:, :1] > 0).float()
train_loader = DataLoader(TensorDataset(x[:192], y[:192]), 32, shuffle=True)
val_loader = DataLoader(TensorDataset(x[192:], y[192:]), 32)
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
for epoch in range(5):
    model.train()
    for a, b in train_loader:
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(a), b).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        print(sum((((model(a)) > 0.5) == b).sum() for a, b in val_loader))
"""


@pytest.mark.parametrize("activation", ["", "torch.sigmoid"])
def test_a_script_that_halves_logits(activation: str, ask_script: Any) -> None:
    result = ask_script(MetricMeaning, HALVED.replace("(model(a))", f"{activation}(model(a))"))
    assert result.status is (Status.SKIP if activation else Status.FAIL), result.message


@pytest.mark.parametrize(("column", "found"), [(True, 1), (False, 0)])
def test_decided_predictions_that_are_compared_with_all_labels(*, column: bool, found: int) -> None:
    net, labels = nn.Linear(4, 3), torch.arange(8) % 3
    listening = EvalComparisons()
    net.register_forward_pre_hook(listening.called)
    with listening, torch.no_grad():
        decided = net(torch.randn(8, 4)).argmax(1)
        assert (decided == (labels[:, None] if column else labels)).shape[0] == 8
        assert (labels == labels[:, None]).any()  # labels with each other: by design
    assert len(listening.found) == found


@pytest.mark.parametrize("error", ["p - y", "(p.cpu().float() - y).abs()", "F.l1_loss(p, y)"])
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_predictions_that_all_targets_are_subtracted_from(error: str) -> None:
    net, y = nn.Linear(4, 1), torch.randn(8)
    listening = EvalComparisons()
    net.register_forward_pre_hook(listening.called)
    net.register_forward_hook(listening.returned)
    with listening, torch.no_grad():
        for rows in (8, 6):
            p = net(torch.randn(rows, 4))
            given = {"p": p, "y": y[:rows], "F": F}
            assert eval(error, given) is not None
            assert eval(error, {**given, "p": p.squeeze(1)}) is not None
            assert (p - p.squeeze(1)).shape == (rows, rows)  # pairs of predictions: by design
    assert [(seen.shapes, len(target)) for seen, target in listening.differences] == [
        (((8, 1), (8,)), 8),
        (((6, 1), (6,)), 6),
    ]


MEAN_ERROR = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(96, 4)
train = DataLoader(TensorDataset(x, x[:, 0]), batch_size=16, shuffle=True)
held_out = DataLoader(TensorDataset(x[:48], x[:48, 0]), batch_size=16)
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(4):
    for inputs, target in train:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs)[:, 0], target).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        error = sum((model(a) - b).abs().mean() for a, b in held_out)
    model.train()
"""


def test_a_script_that_subtracts_all_targets_fails(tmp_path: Path) -> None:
    result = ask_script(MetricMeaning, tmp_path / "train.py", MEAN_ERROR)
    assert result.status is Status.FAIL
    assert "(16, 1) and (16,)" in result.message


def used(function: str, task: str, shown: str = "output") -> Result:
    """The verdict on a function of the user's that validation gives such predictions."""
    output, target = predictions(task)
    given = {"output": output, "target": target, "torch": torch}
    metric = MetricFunction(
        "accuracy", eval(f"lambda p, t: {function}", given), eval(shown, given), target,
        Location(file="train.py", line=3),
    )  # fmt: skip
    return judged(None, LOSSES[task], output, target, functions=(metric,))


@pytest.mark.parametrize(
    ("function", "task", "shown"),
    [
        ("(p.argmax(1) == t).float().mean()", "classes", "output"),
        ("(p == t).sum()", "classes", "output.argmax(1)"),
        ("[(p.topk(k, 1).indices == t[:, None]).any(1).float().mean() for k in (1, 2)]",
         "classes", "output"),
        ("((p > 0) == t).float().mean()", "binary", "output"),
        ("((p > 0.5) == (t > 0.5)).float().mean()", "binary", "output.sigmoid()"),
        ("((p.sigmoid() >= 0.5) == t).float().mean()", "binary", "output.sigmoid()"),
        ("(p.sigmoid().round() == t).float().mean()", "binary", "-output.abs()"),
        ("2 * (p * t).sum() / (p.sum() + t.sum())", "binary", "(output > 0).float()"),
    ],
)  # fmt: skip
def test_functions_that_are_right(function: str, task: str, shown: str) -> None:
    assert used(function, task, shown).status in (Status.SKIP, Status.NOTE)


@pytest.mark.parametrize(
    ("function", "task", "shown"),
    [
        ("(p.argmax() == t).float().mean()", "classes", "output"),
        ("(p.argmax(0)[:1] == t).float().mean()", "classes", "output"),
        ("(p == t.flip(0)).float().mean()", "classes", "output.argmax(1)"),
        ("(p * t).sum() / (p.sum() + t.sum())", "binary", "(output > 0).float()"),
        ("((p > 0) == t).float().mean() * 0 + 1", "binary", "output"),
    ],
)
def test_functions_that_are_wrong(function: str, task: str, shown: str) -> None:
    result = used(function, task, shown)
    assert result.status is Status.FAIL
    assert result.location is not None
    assert result.location.line == 3


def test_a_function_that_raises_is_not_judged() -> None:
    assert used("p.no_such_thing", "classes").status is not Status.FAIL


VALIDATED = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def accuracy(logits, labels):
    return (logits.argmax(AXIS) == labels).float().mean()

torch.manual_seed(0)
x = torch.randn(96, 4)
train = DataLoader(TensorDataset(x, x.argmax(1)), batch_size=16, shuffle=True)
held_out = DataLoader(TensorDataset(x[:48], x[:48].argmax(1)), batch_size=16)
model = nn.Linear(4, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(4):
    for inputs, labels in train:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        score = sum(accuracy(model(a), b) for a, b in held_out) / len(held_out)
    model.train()
"""


@pytest.mark.parametrize(("axis", "status"), [("", Status.FAIL), ("1", Status.SKIP)])
def test_a_script_whose_validation_calls_a_function(
    axis: str, status: Status, tmp_path: Path
) -> None:
    source = VALIDATED.replace("AXIS", axis)
    result = ask_script(MetricMeaning, tmp_path / "train.py", source)
    assert result.status is status, result.message
