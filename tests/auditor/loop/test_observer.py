from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnaudit.loop.autograd import graph_of, producer_of
from nnaudit.loop.observer import Observer
from nnaudit.loop.total_loss import call_of_total

torch.manual_seed(0)
X = torch.randn(8, 4)
Y = torch.randint(3, (8,))


def observed(model: nn.Module, loss, optimizer=None, x: Tensor = X):
    optimizers = () if optimizer is None else (optimizer,)
    with Observer(model, optimizers) as observer:
        value = loss(model(x))
        observer.observation.total_loss = float(value.detach())
        value.backward()
        for each in optimizers:
            each.step()
    return observer.observation


class TestLossCalls:
    def test_module_and_function_are_the_same_to_it(self) -> None:
        criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
        seen = observed(nn.Linear(4, 3), lambda output: criterion(output, Y))
        (call,) = seen.loss_calls
        assert call.kind == "cross_entropy"
        assert call.arguments["label_smoothing"] == 0.1
        assert call.reduction == "mean"
        assert torch.equal(call.target, Y)
        assert call.location is not None
        assert call.location.file == __file__
        assert call_of_total(seen) is call

    def test_recompute_keeps_the_other_arguments(self) -> None:
        seen = observed(
            nn.Linear(4, 3), lambda output: F.cross_entropy(output, Y, label_smoothing=0.3)
        )
        call = seen.loss_calls[0]
        assert call.value is not None
        assert float(call.recompute(call.input)) == pytest.approx(float(call.value))
        assert float(call.recompute(torch.zeros(8, 3))) == pytest.approx(math.log(3))
        assert call.recompute(call.input, reduction="none").shape == (8,)

    @pytest.mark.parametrize(
        ("obsolete", "reduction"),
        [
            ({"size_average": False}, "sum"),
            ({"size_average": True}, "mean"),
            ({"reduce": False}, "none"),
            ({"size_average": False, "reduce": True}, "sum"),
            ({"size_average": None, "reduction": "sum"}, "sum"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:size_average and reduce")
    def test_obsolete_arguments_are_said_by_the_reduction(
        self, obsolete: dict[str, Any], reduction: str
    ) -> None:
        output, target = torch.tensor([0.2, 0.9]), torch.tensor([0.0, 1.0])
        with Observer(nn.Identity(), losses_only=True) as watch:
            value = F.binary_cross_entropy(output, target, **obsolete)
        (call,) = watch.observation.loss_calls
        assert call.reduction == reduction
        assert torch.equal(call.recompute(output), value)
        assert call.recompute(output, reduction="mean") == pytest.approx(0.164, abs=1e-3)

    @pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss])
    def test_the_prediction_may_come_second_where_that_is_the_same(self, loss) -> None:
        wanted = torch.randn(8, 1)
        call = observed(nn.Linear(4, 1), lambda output: loss(wanted, output)).loss_calls[0]
        assert torch.equal(call.target, wanted)
        assert call.producer.startswith("Addmm")
        with Observer(model := nn.Linear(4, 1)) as observer, torch.no_grad():
            loss(wanted[:, 0], model(X)[:, 0])
        assert torch.equal(observer.observation.loss_calls[0].target, wanted[:, 0])

    def test_elsewhere_it_is_taken_at_its_word(self) -> None:
        share = torch.rand(8, 1)
        call = observed(
            nn.Linear(4, 1), lambda output: F.binary_cross_entropy(share, output.sigmoid())
        ).loss_calls[0]
        assert torch.equal(call.input, share)

    def test_a_call_that_raises_is_recorded_without_a_value(self) -> None:
        model = nn.Linear(4, 1)
        with (
            pytest.raises(RuntimeError),
            Observer(model) as observer,
        ):
            F.binary_cross_entropy(model(X) + 5.0, torch.ones(8, 1))
        assert observer.observation.loss_calls[0].value is None

    def test_a_wrong_call_fails_as_it_would_without_a_tap(self) -> None:
        model = nn.Linear(4, 3)
        with pytest.raises(TypeError, match="target"), Observer(model):
            F.cross_entropy(model(X))  # type: ignore[call-arg]

    def test_first_rows_cuts_input_and_target_alike(self) -> None:
        seen = observed(nn.Linear(4, 3), lambda output: F.cross_entropy(output, Y))
        cut = seen.loss_calls[0].first_rows(5)
        assert cut.input.shape == (5, 3)
        assert torch.equal(cut.target, Y[:5])
        assert cut.value is seen.loss_calls[0].value

    def test_a_hand_written_loss_is_no_main_loss(self) -> None:
        seen = observed(
            nn.Linear(4, 3), lambda output: F.cross_entropy(output, Y) + output.square().mean()
        )
        assert call_of_total(seen) is None


class TestProvenance:
    @pytest.mark.parametrize(
        ("make", "node"),
        [
            (lambda x: x.softmax(1), "SoftmaxBackward0"),
            (lambda x: x.sigmoid().view(-1, 2).t().t(), "SigmoidBackward0"),
            (lambda x: x.log_softmax(1).unsqueeze(0).squeeze(0)[:, :2], "LogSoftmaxBackward0"),
            (lambda x: x.softmax(1).to(torch.float64), "SoftmaxBackward0"),
            (lambda x: torch.stack([x.sigmoid(), x.sigmoid()]), "SigmoidBackward0"),
            (lambda x: x, ""),
        ],
    )
    def test_views_are_looked_through(self, make, node: str) -> None:
        assert producer_of(make(X.clone().requires_grad_())) == node

    def test_values_of_several_origins_have_none_of_them(self) -> None:
        x = X.clone().requires_grad_()
        mixed = torch.cat([x[:, :1].sigmoid(), x[:, 1:]], dim=1)
        assert producer_of(mixed) == "CatBackward0"
        assert producer_of(mixed[:, 1:]) == "CatBackward0"

    def test_what_came_before_is_known(self) -> None:
        seen = observed(
            nn.Linear(4, 3), lambda output: F.nll_loss(output.softmax(1).log_softmax(1), Y)
        )
        (call,) = seen.loss_calls
        assert call.producer.startswith("LogSoftmax")
        assert call.before.startswith("Softmax")

    def test_the_lineage_shows_a_logarithm_under_arithmetic(self) -> None:
        def focal(output: Tensor) -> Tensor:
            log_p = output.log_softmax(1)
            return F.nll_loss((1 - log_p.exp()) ** 2 * log_p, Y)

        seen = observed(nn.Linear(4, 3), focal)
        assert any(name.startswith("LogSoftmax") for name in seen.loss_calls[0].lineage)

    def test_the_lineage_shows_cosines(self) -> None:
        class Cosine(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body, self.centres = nn.Linear(4, 5), nn.Parameter(torch.randn(3, 5))

            def forward(self, x: Tensor) -> Tensor:
                return 30 * F.linear(F.normalize(self.body(x)), F.normalize(self.centres))

        seen = observed(Cosine(), lambda output: F.cross_entropy(output, Y))
        assert any("VectorNorm" in name for name in seen.loss_calls[0].lineage)


class TestBroadcasts:
    @pytest.mark.parametrize(
        "loss",
        [
            lambda out, y: ((out - y) ** 2).mean(),
            lambda out, y: (y - out).abs().mean(),
            lambda out, y: torch.sub(out, y).square().mean(),
        ],
    )
    def test_a_column_less_a_vector_is_seen(self, loss) -> None:
        y = torch.randn(8)
        seen = observed(nn.Linear(4, 1), lambda output: loss(output, y))
        (found,) = seen.broadcasts
        assert set(found.shapes) == {(8, 1), (8,)}
        assert found.location is not None
        assert found.location.file == __file__

    @pytest.mark.parametrize(
        "loss",
        [
            lambda out, y: ((out - y[:, None]) ** 2).mean(),
            lambda out, y: ((out.squeeze(1) - y) ** 2).mean(),
            lambda out, y: (out - out.squeeze(1)).square().mean(),
            lambda out, y: (out - out.squeeze(1).detach()).square().mean(),
            lambda out, y: (out[:, None] - torch.zeros(3)).square().mean(),
            lambda out, y: (1.0 - out).mean(),
        ],
    )
    def test_equal_shapes_and_tables_of_all_pairs_are_not(self, loss) -> None:
        y = torch.randn(8)
        assert observed(nn.Linear(4, 1), lambda output: loss(output, y)).broadcasts == []

    def test_comparisons_of_all_pairs_are_told_apart(self) -> None:
        y, other = torch.arange(8), torch.arange(8).flip(0)
        with Observer(nn.Linear(4, 1), []) as taps:
            (y[:, None] == other).sum()
            (y[:, None] == y).sum()  # which rows are of one class
            torch.ne(y, other).sum()
        (found,) = taps.observation.broadcasts
        assert found.compared


class TestActivations:
    def test_every_module_is_described_in_order(self) -> None:
        model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
        seen = observed(model, lambda output: F.cross_entropy(output, Y))
        assert [each.module for each in seen.activations] == ["0", "1", "2", ""]
        assert seen.activations[0].shape == (8, 5)
        assert seen.activations[0].std == pytest.approx(
            float(model[0](X).detach().std(correction=0)), rel=1e-5
        )
        assert seen.activations[3].is_leaf is False

    def test_the_first_module_with_infinities_is_told_from_the_next(self) -> None:
        class Log(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.log(x.relu() * 0)

        seen = observed(nn.Sequential(nn.Linear(4, 3), Log(), nn.ReLU()), lambda out: out.sum())
        _, log, relu, _ = seen.activations
        assert (log.finite, log.inputs_finite) == (False, True)
        assert relu.inputs_finite is False

    def test_values_that_cannot_be_read_do_not_break_the_step(self) -> None:
        model = nn.Linear(4, 3)
        with Observer(model) as observer:
            torch.vmap(model)(X).sum().backward()
        assert model.weight.grad is not None
        assert observer.observation.activations == []

    def test_statistics_of_batches_are_those_of_the_input(self) -> None:
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        x = torch.randn(6, 1, 5, 5)
        seen = observed(model, lambda output: output.square().mean(), x=x)
        (found,) = seen.batch_statistics
        inside = model[0](x)
        assert found.shape == (6, 2, 3, 3)
        torch.testing.assert_close(found.mean, inside.mean(dim=(0, 2, 3)).detach())
        torch.testing.assert_close(found.variance, inside.var(dim=(0, 2, 3), correction=0).detach())


class TestModes:
    def test_only_calls_with_gradients_count(self) -> None:
        model = nn.Sequential(nn.Linear(4, 3), nn.Dropout())
        with Observer(model) as observer:
            model(X).sum().backward()
            model.eval()
            with torch.no_grad():
                model(X)
        assert observer.observation.training_flags == {"": True, "0": True, "1": True}

    def test_a_module_that_never_ran_is_absent(self) -> None:
        model = nn.ModuleDict({"used": nn.Linear(4, 3), "unused": nn.Linear(4, 3)})
        with Observer(model) as observer:
            model["used"](X).sum().backward()
        assert set(observer.observation.training_flags) == {"used"}


class TestGraph:
    def test_depth_counts_layers_on_the_shortest_path(self) -> None:
        plain = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(7)))
        graph = graph_of(plain(X))
        assert graph is not None
        assert graph.depth == 7

    def test_dropout_and_constants_do_not_shorten_it(self) -> None:
        layers = [nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)) for _ in range(5)]
        graph = graph_of(nn.Sequential(*layers)(X) * 2 + torch.ones(4))
        assert graph is not None
        assert graph.depth == 5

    def test_shortcuts_do(self) -> None:
        class Residual(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(9))

            def forward(self, x: Tensor) -> Tensor:
                for layer in self.layers:
                    x = x + layer(x).relu()
                return x

        graph = graph_of(Residual()(X))
        assert graph is not None
        assert graph.depth == 1

    def test_recurrence_through_time_is_no_depth(self) -> None:
        output, _ = nn.GRU(4, 6, batch_first=True)(torch.randn(2, 30, 4))
        graph = graph_of(output)
        assert graph is not None
        assert graph.depth <= 2

    def test_a_constant_has_no_graph(self) -> None:
        assert graph_of(X) is None

    def test_functional_normalisation_is_among_the_operations(self) -> None:
        graph = graph_of(F.layer_norm(nn.Linear(4, 4)(X), (4,)))
        assert graph is not None
        assert "NativeLayerNormBackward" in graph.operations


class TestGradients:
    def test_norms_before_and_after_the_step(self) -> None:
        model = nn.Linear(4, 3)
        before = model.weight.detach().clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        seen = observed(model, lambda output: F.cross_entropy(output, Y), optimizer)
        found = {each.parameter: each for each in seen.gradients}["weight"]
        assert model.weight.grad is not None
        assert found.norm == pytest.approx(float(model.weight.grad.norm()), rel=1e-5)
        assert found.weight_norm == pytest.approx(float(before.norm()), rel=1e-5)
        assert found.update_norm == pytest.approx(0.5 * (found.norm or 0), rel=1e-4)

    def test_parameters_of_no_optimizer_are_recorded_as_such(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
        optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
        seen = observed(model, lambda output: F.cross_entropy(output, Y), optimizer)
        owned = {each.parameter: each.owned for each in seen.gradients}
        assert owned == {"0.weight": False, "0.bias": False, "1.weight": True, "1.bias": True}

    def test_an_optimizer_with_a_closure_shows_its_gradients(self) -> None:
        model = nn.Linear(4, 3)
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(X), Y)
            loss.backward()
            return loss

        with Observer(model, (optimizer,)) as observer:
            optimizer.step(closure)
        assert all((each.norm or 0) > 0 for each in observer.observation.gradients)

    def test_a_gradient_that_is_not_finite_is_seen(self) -> None:
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        seen = observed(model, lambda output: (output * 0).sqrt().sum(), optimizer)
        assert not any(each.finite for each in seen.gradients)

    def test_sparse_and_complex_parameters(self) -> None:
        class Odd(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table = nn.Embedding(5, 3, sparse=True)
                self.phase = nn.Parameter(torch.randn(3, dtype=torch.complex64))

            def forward(self, ids: Tensor) -> Tensor:
                return (self.table(ids) * self.phase).abs()

        model = Odd()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        seen = observed(model, lambda output: output.sum(), optimizer, x=torch.tensor([1, 2]))
        assert all(each.finite and (each.norm or 0) > 0 for each in seen.gradients)


class TestLossesOnly:
    def test_losses_and_the_output_are_seen_and_nothing_else(self) -> None:
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        with Observer(model, losses_only=True) as observer:
            output = model(X)
            F.cross_entropy(output, Y).backward()
        seen = observer.observation
        assert [call.kind for call in seen.loss_calls] == ["cross_entropy"]
        assert torch.equal(seen.output, output)
        assert not (seen.activations or seen.firings or seen.gradients or seen.flows)
        assert not model._forward_hooks


class TestNothingIsChanged:
    def test_a_step_is_bit_identical_with_and_without_taps(self) -> None:
        def run(watch: bool) -> list[Tensor]:
            torch.manual_seed(3)
            model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
            optimizer = torch.optim.Adam(model.parameters())
            for _ in range(3):
                if watch:
                    observed(model, lambda output: F.cross_entropy(output, Y), optimizer)
                else:
                    F.cross_entropy(model(X), Y).backward()
                    optimizer.step()
            return list(model.state_dict().values())

        for one, other in zip(run(True), run(False), strict=True):
            assert torch.equal(one, other)

    def test_no_hook_stays_behind(self) -> None:
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        observed(model, lambda output: F.cross_entropy(output, Y), optimizer)
        assert not model._forward_hooks
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks

    def test_an_error_leaves_no_hook_either(self) -> None:
        model = nn.Linear(4, 3)
        with pytest.raises(RuntimeError), Observer(model):
            model(torch.randn(2, 5))
        assert not model._forward_hooks
