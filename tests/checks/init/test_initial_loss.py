from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.init.initial_loss import InitialLoss
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Numbers, Result, Status
from nnaudit.targets.target import Target

DIM, CLASSES = 16, 10


def loader(y: Tensor | None = None, batch: int = 64, rows: int = 1024) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, DIM, generator=generator)
    y = x[:, :CLASSES].argmax(1) if y is None else y
    return DataLoader(TensorDataset(x, y), batch_size=batch, shuffle=True)


def mlp(outputs: int = CLASSES, std: float | None = None) -> nn.Module:
    model = nn.Sequential(nn.Linear(DIM, 64), nn.ReLU(), nn.Linear(64, outputs))
    if std is not None:
        nn.init.normal_(model[2].weight, std=std)
    return model


def audited(
    model: Callable[[], nn.Module] | nn.Module = mlp,
    loss: Callable[..., Tensor] = F.cross_entropy,
    train: DataLoader | None = None,
    **parts: Any,
) -> Result:
    target = Target(model, train_loader=loader() if train is None else train, loss=loss, **parts)
    return run_check(InitialLoss, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


def value(result: Result, name: str) -> float:
    numbers = next(e for e in result.evidence if isinstance(e, Numbers))
    return float(numbers.values[name])


class TestClassification:
    def test_a_default_initialisation_passes_after_one_batch(self) -> None:
        result = audited()
        assert result.status is Status.PASS
        assert result.steps == 5  # the observed ones; none more for a healthy program
        assert value(result, "initial loss") == pytest.approx(math.log(CLASSES), abs=0.3)

    def test_a_last_layer_far_too_large_fails_and_is_named(self) -> None:
        result = audited(lambda: mlp(std=10.0))
        assert result.status is Status.FAIL
        assert "with each of 3 seeds" in result.message
        assert result.module == "2"
        assert "model[2].weight" in result.fix
        assert result.location is not None

    def test_one_nat_too_many_is_a_warning(self) -> None:
        result = audited(lambda: mlp(std=0.6))
        assert result.status is Status.WARN
        assert value(result, "initial loss") < 3 * math.log(CLASSES)

    def test_inputs_far_too_large_are_found_where_they_enter(self) -> None:
        x = 5000 * torch.randn(1024, DIM)
        data = DataLoader(TensorDataset(x, x[:, :CLASSES].argmax(1)), batch_size=64)
        result = audited(train=data)
        assert result.status is Status.FAIL
        assert "Standardise the inputs" in result.fix

    def test_inputs_of_a_few_units_are_the_cause_and_not_the_last_layer(self) -> None:
        x = 12 * torch.randn(1024, DIM)
        data = DataLoader(TensorDataset(x, x[:, :CLASSES].argmax(1)), batch_size=64)
        result = audited(train=data)
        assert result.status is Status.WARN
        assert "Standardise the inputs" in result.fix

    @pytest.mark.parametrize(
        "loss",
        [
            nn.CrossEntropyLoss(label_smoothing=0.1),
            nn.CrossEntropyLoss(weight=torch.linspace(0.1, 9.0, CLASSES)),
            nn.CrossEntropyLoss(reduction="sum"),
            nn.CrossEntropyLoss(ignore_index=3),
            lambda output, y: F.cross_entropy(output, y) / 8,
            lambda output, y: F.cross_entropy(output, y, reduction="none").mean(),
            lambda output, y: F.nll_loss(output.log_softmax(1), y),
            lambda output, y: F.kl_div(
                output.log_softmax(1),
                F.one_hot(y, CLASSES) * 0.9 + 0.01,
                reduction="batchmean",
            ),
            lambda output, y: F.binary_cross_entropy_with_logits(
                output, F.one_hot(y, CLASSES).float(), pos_weight=torch.full((CLASSES,), 9.0)
            ),
            lambda output, y: F.binary_cross_entropy(
                output.sigmoid(), F.one_hot(y, CLASSES).float()
            ),
            lambda output, y: -output.log_softmax(1)[torch.arange(len(y)), y].mean(),
            lambda output, y: F.cross_entropy(output, F.one_hot(y, CLASSES) * 0.8 + 0.02),
        ],
    )
    def test_arguments_and_forms_of_the_loss_do_not_matter(self, loss) -> None:
        assert audited(loss=loss).status is Status.PASS
        assert audited(lambda: mlp(std=20.0), loss=loss).status is Status.FAIL

    @pytest.mark.parametrize("seed", range(5))
    def test_rare_classes_pass(self, seed: int) -> None:
        y = (torch.rand(1024, generator=torch.Generator().manual_seed(seed)) < 0.02).long()
        assert audited(lambda: mlp(2), train=loader(y)).status is Status.PASS

    def test_sixteen_rows_and_a_good_start_pass(self) -> None:
        data = loader(batch=16, rows=16)
        assert audited(train=data).status in (Status.PASS, Status.INCONCLUSIVE)

    def test_sixteen_rows_and_an_absurd_start_fail(self) -> None:
        assert audited(lambda: mlp(std=20.0), train=loader(batch=16, rows=16)).status is Status.FAIL


class TestReplication:
    def test_without_a_fresh_run_it_only_warns(self) -> None:
        result = audited(mlp(std=10.0))
        assert result.status is Status.WARN
        assert "not repeated with other seeds" in result.message

    def test_weights_that_do_not_follow_the_seed_only_warn(self) -> None:
        state = mlp(std=10.0).state_dict()

        def loaded() -> nn.Module:
            model = mlp()
            model.load_state_dict(state)
            return model

        result = audited(loaded)
        assert result.status is Status.WARN
        assert "no weight depends on the seed" in result.message

    def test_what_happens_under_one_seed_only_warns(self) -> None:
        def lucky() -> nn.Module:
            return mlp(std=10.0 if torch.initial_seed() == 0 else 0.1)

        result = audited(lucky)
        assert result.status is Status.WARN
        assert "not with every seed" in result.message


def test_an_architecture_of_a_library_is_a_warning() -> None:
    def model() -> nn.Module:
        made = torchvision.ops.MLP(DIM, [32, CLASSES])
        nn.init.normal_(made[-2].weight, std=30.0)
        return made

    result = audited(model)
    assert result.status is Status.WARN
    assert "with the initialisation of torchvision" in result.message


class TestWhatHasNoTheory:
    def test_a_contrastive_loss(self) -> None:
        def clip(output: Tensor, y: Tensor) -> Tensor:
            scores = output @ output.T * 50
            return F.cross_entropy(scores, torch.arange(len(output)))

        result = audited(loss=clip)
        assert result.status is Status.INCONCLUSIVE
        assert "contrastive" in result.message

    def test_one_positive_at_the_front(self) -> None:
        def moco(output: Tensor, y: Tensor) -> Tensor:
            scores = torch.cat([output[:, :1] - 9, output[:, 1:] * 30], dim=1)
            return F.cross_entropy(scores, torch.zeros(len(output), dtype=torch.long))

        assert audited(loss=moco).status is Status.INCONCLUSIVE

    def test_an_additive_margin(self) -> None:
        def margin(output: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(output - 40.0 * F.one_hot(y, CLASSES), y)

        result = audited(loss=margin)
        assert result.status is Status.INCONCLUSIVE
        assert "margin" in result.message

    def test_scaled_cosines_are_the_authors_choice(self) -> None:
        class Cosine(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = nn.Linear(DIM, 4)
                self.centres = nn.Parameter(torch.randn(CLASSES, 4))

            def forward(self, x: Tensor) -> Tensor:
                return 64 * F.linear(F.normalize(self.body(x)), F.normalize(self.centres))

        assert audited(Cosine).status is Status.NOTE

    def test_a_loss_of_its_own(self) -> None:
        result = audited(loss=lambda output, y: output.square().sum() * 100 + 0 * y.sum())
        assert result.status is Status.INCONCLUSIVE
        assert "by hand" in result.message

    def test_the_full_batch_again_and_again_is_no_adversary(self) -> None:
        assert audited(train=loader(batch=1024)).status is Status.PASS

    def test_a_nan(self) -> None:
        result = audited(loss=lambda output, y: F.cross_entropy(output * math.nan, y))
        assert result.status is Status.INCONCLUSIVE


class TestTerms:
    def test_a_term_on_the_labels_is_judged(self) -> None:
        def loss(output: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(output, y) + 0.01 * output.abs().mean()

        assert audited(loss=loss).status is Status.PASS
        assert audited(lambda: mlp(std=20.0), loss=loss).status is Status.FAIL

    def test_the_worst_of_several_tasks_counts(self) -> None:
        class Two(nn.Module):
            def __init__(self, std: float) -> None:
                super().__init__()
                self.one, self.two = mlp(), mlp(2, std)

            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                return self.one(x), self.two(x)

        def loss(output: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> Tensor:
            return F.cross_entropy(output[0], y[0]) + 0.5 * F.cross_entropy(output[1], y[1])

        x = torch.randn(1024, DIM)
        data = DataLoader(
            TensorDataset(x, x[:, :CLASSES].argmax(1), (x[:, 0] > 0).long()), batch_size=64
        )
        assert audited(lambda: Two(0.1), loss=loss, train=data).status is Status.PASS
        assert audited(lambda: Two(30.0), loss=loss, train=data).status is Status.FAIL


class TestTooLow:
    class Leak(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(DIM, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x) + 30 * x[:, :CLASSES]

    def test_an_answer_that_needs_no_learning_is_a_warning(self) -> None:
        x = 0.01 * torch.randn(1024, DIM)
        y = torch.randint(CLASSES, (1024,))
        x[torch.arange(1024), y] = 1.0
        result = audited(self.Leak, train=DataLoader(TensorDataset(x, y), batch_size=64))
        assert result.status is Status.WARN
        assert "without being learnt" in result.message

    def test_trained_weights_pass_whatever_the_seed_did_to_them(self) -> None:
        def pretrained() -> nn.Module:
            model = nn.Sequential(nn.Linear(DIM, CLASSES))
            with torch.no_grad():
                model[0].weight.copy_(8 * torch.eye(CLASSES, DIM) + 0.1 * torch.randn(CLASSES, DIM))
            return model

        result = audited(pretrained)
        assert result.status is Status.PASS
        assert "already trained" in result.message

    def test_loaded_weights_with_other_class_numbers_are_a_warning(self) -> None:
        def shifted() -> nn.Module:
            model = nn.Sequential(nn.Linear(DIM, CLASSES, bias=False))
            with torch.no_grad():
                model[0].weight.copy_(8 * torch.eye(CLASSES, DIM).roll(1, 0))
            return model

        result = audited(shifted)
        assert result.status is Status.WARN


class TestRegression:
    def test_standardised_targets_pass(self) -> None:
        for loss in (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss):
            result = audited(lambda: mlp(1), loss=loss, train=loader(torch.randn(1024, 1)))
            assert result.status is Status.PASS
            assert result.steps == 5

    def test_targets_of_152_and_77_are_a_warning_with_the_line_to_write(self) -> None:
        y = 152 + 77 * torch.randn(1024, 1, generator=torch.Generator().manual_seed(0))
        result = audited(lambda: mlp(1), loss=F.mse_loss, train=loader(y))
        assert result.status is Status.WARN
        assert "Standardise the targets" in result.fix
        assert "constant_" in result.fix

    def test_large_targets_around_zero_are_a_warning(self) -> None:
        y = 300 * torch.randn(1024, 1, generator=torch.Generator().manual_seed(0))
        assert audited(lambda: mlp(1), loss=F.l1_loss, train=loader(y)).status is Status.WARN

    def test_a_model_that_scales_its_own_output_passes(self) -> None:
        class Scaled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = mlp(1)

            def forward(self, x: Tensor) -> Tensor:
                return 152 + 77 * self.body(x)

        y = 152 + 77 * torch.randn(1024, 1, generator=torch.Generator().manual_seed(0))
        assert audited(Scaled, loss=F.mse_loss, train=loader(y)).status is Status.PASS

    def test_absurd_outputs_fail(self) -> None:
        result = audited(
            lambda: mlp(1, std=50.0), loss=F.mse_loss, train=loader(torch.randn(1024, 1))
        )
        assert result.status is Status.FAIL
        assert result.module == "2"

    def test_he_initialisation_of_every_layer_passes(self) -> None:
        def he() -> nn.Module:
            model = mlp(1)
            for layer in (model[0], model[2]):
                nn.init.kaiming_normal_(layer.weight)
            return model

        assert (
            audited(he, loss=F.mse_loss, train=loader(torch.randn(1024, 1))).status is Status.PASS
        )

    def test_tiny_targets_are_a_note(self) -> None:
        y = 0.001 * torch.randn(1024, 1, generator=torch.Generator().manual_seed(0))
        assert audited(lambda: mlp(1), loss=F.mse_loss, train=loader(y)).status is Status.NOTE

    def test_a_prediction_of_the_change_starts_low_and_passes(self) -> None:
        class Residual(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = mlp(DIM)

            def forward(self, x: Tensor) -> Tensor:
                return x + 0.01 * self.body(x)

        x = torch.randn(1024, DIM)
        data = DataLoader(TensorDataset(x, x + 0.1 * torch.randn_like(x)), batch_size=64)
        assert audited(Residual, loss=F.mse_loss, train=data).status is Status.PASS

    def test_a_mean_of_the_targets_as_bias_passes(self) -> None:
        class Biased(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = mlp(1)
                nn.init.constant_(self.body[2].bias, 152.0)

            def forward(self, x: Tensor) -> Tensor:
                return self.body(x)

        y = 152 + 7 * torch.randn(1024, 1, generator=torch.Generator().manual_seed(0))
        assert audited(Biased, loss=F.mse_loss, train=loader(y)).status is Status.PASS


@pytest.mark.slow
@pytest.mark.parametrize(
    "seeds", [range(4), pytest.param(range(4, 15), marks=pytest.mark.exhaustive)]
)
def test_default_initialisations_raise_no_alarm(seeds: range) -> None:
    """The rejection rate under the null: networks of 8 shapes, under 4 seeds each; 15 in all."""
    alarms = []
    for classes in (2, 3, 10, 100):
        for hidden in ((), (32, 32, 32)):
            for seed in seeds:

                def build(hidden: tuple[int, ...] = hidden, classes: int = classes) -> nn.Module:
                    sizes = (DIM, *hidden)
                    layers: list[nn.Module] = []
                    for a, b in itertools.pairwise(sizes):
                        layers += [nn.Linear(a, b), nn.ReLU()]
                    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))

                torch.manual_seed(seed)
                data = loader(torch.randint(classes, (256,)), batch=32, rows=256)
                loop = DirectLoop(
                    Target(build, data, loss=F.cross_entropy), torch.device("cpu"), seed=seed
                )
                status = run_check(InitialLoss, Audit(loop, seed=seed)).status
                alarms += [status] if status is not Status.PASS else []
    assert alarms == []


@pytest.mark.slow
def test_the_power_grows_with_the_scale() -> None:
    found = {}
    for std in (0.3, 1.0, 3.0):
        results = [
            run_check(
                InitialLoss,
                Audit(
                    DirectLoop(
                        Target(lambda std=std: mlp(std=std), loader(), loss=F.cross_entropy),
                        torch.device("cpu"),
                        seed=seed,
                    ),
                    seed=seed,
                ),
            ).status
            for seed in range(5)
        ]
        found[std] = results
    assert Status.FAIL not in found[0.3]
    assert all(status in (Status.WARN, Status.FAIL) for status in found[1.0])
    assert set(found[3.0]) == {Status.FAIL}
