from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from nnaudit.checks.norm.normalization_choice import NormalizationChoice
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status, Table
from nnaudit.targets.target import Target


def vectors(rows: int = 512, batch: int = 32, **more: Any) -> DataLoader:
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=batch, shuffle=True, **more)


def images(rows: int = 96, batch: int = 8, size: int = 8) -> DataLoader:
    x = torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, torch.randint(3, (rows,))), batch_size=batch, shuffle=True)


def mlp(norm: Callable[[int], nn.Module] | None, depth: int = 2, act: Any = nn.ReLU) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(6, 16)]
    for _ in range(depth - 2):
        layers += [*([norm(16)] if norm else []), act(), nn.Linear(16, 16)]
    return nn.Sequential(*layers, *([norm(16)] if norm else []), act(), nn.Linear(16, 3))


def cnn(norm: Callable[[int], nn.Module] | None, depth: int = 3) -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1)]
        layers += [*([norm(8)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def audited(
    model: Callable[[], nn.Module], train: DataLoader | None = None, **parts: Any
) -> Result:
    loader = vectors() if train is None else train
    target = Target(model, loader, loss=F.cross_entropy, **parts)
    return run_check(NormalizationChoice, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


class TestDepth:
    def test_a_deep_plain_network_is_a_warning(self) -> None:
        result = audited(lambda: mlp(None, depth=12))
        assert result.status is Status.WARN
        assert result.measured == "12 layers"
        result = audited(lambda: cnn(None, depth=12), images())
        assert result.status is Status.WARN
        assert "BatchNorm2d" in result.fix

    @pytest.mark.parametrize(
        "model",
        [
            lambda: mlp(None, depth=5),
            lambda: mlp(nn.LayerNorm, depth=14),
            lambda: mlp(nn.RMSNorm, depth=14),
            lambda: mlp(None, depth=14, act=nn.SELU),
        ],
    )
    def test_shallow_normalised_and_self_normalising_ones_pass(self, model) -> None:
        assert audited(model).status is Status.PASS

    def test_weight_normalisation_counts(self) -> None:
        def build() -> nn.Module:
            model = mlp(None, depth=14)
            for layer in model:
                if isinstance(layer, nn.Linear):
                    torch.nn.utils.parametrizations.weight_norm(layer)
            return model

        assert audited(build).status is Status.PASS

    def test_a_norm_written_out_counts(self) -> None:
        class Own(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(14)])

            def forward(self, x: Tensor) -> Tensor:
                for layer in self.layers:
                    x = layer(x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)).relu()
                return x[:, :3]

        assert audited(Own).status is Status.PASS

    def test_shortcuts_pass(self) -> None:
        class Residual(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(30)])
                self.head = nn.Linear(6, 3)

            def forward(self, x: Tensor) -> Tensor:
                for layer in self.layers:
                    x = x + 0.1 * layer(x).relu()
                return self.head(x)

        assert audited(Residual).status is Status.PASS

    def test_loaded_weights_pass(self) -> None:
        state = mlp(None, depth=14).state_dict()

        def loaded() -> nn.Module:
            model = mlp(None, depth=14)
            model.load_state_dict(state)
            return model

        assert audited(loaded).status is Status.PASS


class TestSmallBatches:
    @pytest.mark.parametrize("batch", [2, 3, 4])
    def test_a_few_images_are_a_warning_with_the_line_to_write(self, batch: int) -> None:
        result = audited(lambda: cnn(nn.BatchNorm2d), images(batch=batch))
        assert result.status is Status.WARN
        assert f"batches of {batch} rows" in result.message
        assert "nn.GroupNorm(8, 8)" in result.fix

    def test_vectors_are_told_of_layer_normalisation(self) -> None:
        result = audited(lambda: mlp(nn.BatchNorm1d), vectors(batch=4))
        assert result.status is Status.WARN
        assert "nn.LayerNorm(16)" in result.fix

    @pytest.mark.parametrize(
        "norm",
        [
            lambda c: nn.GroupNorm(2, c),
            nn.InstanceNorm2d,
            lambda c: nn.BatchNorm2d(c).eval(),
        ],
    )
    def test_norms_that_ignore_the_batch_pass(self, norm) -> None:
        class Eval(nn.Sequential):
            def train(self, mode: bool = True) -> nn.Module:
                super().train(mode)
                for module in self.modules():
                    if isinstance(module, nn.BatchNorm2d):
                        module.eval()
                return self

        assert audited(lambda: Eval(*cnn(norm)), images(batch=2)).status is Status.PASS

    @pytest.mark.parametrize("batch", [8, 16, 32])
    @pytest.mark.parametrize("seed", range(3))
    def test_customary_batches_pass(self, batch: int, seed: int) -> None:
        torch.manual_seed(seed)
        assert audited(lambda: cnn(nn.BatchNorm2d), images(batch=batch)).status is Status.PASS
        assert audited(lambda: mlp(nn.BatchNorm1d), vectors(batch=batch)).status is Status.PASS

    def test_a_healthy_program_costs_no_step_of_its_own(self) -> None:
        assert audited(lambda: cnn(nn.BatchNorm2d), images()).steps == 5

    def test_the_noise_of_independent_rows_is_one_over_the_root_of_their_number(self) -> None:
        (table,) = audited(lambda: mlp(nn.BatchNorm1d), vectors(batch=16)).evidence
        assert isinstance(table, Table)
        assert float(table.rows[0][3]) == pytest.approx(0.25, rel=0.35)

    def test_batches_of_one_class_each_are_noisy_whatever_their_size(self) -> None:
        y = torch.arange(3).repeat_interleave(128).repeat(4)
        x = 20.0 * F.one_hot(y, 6) + torch.randn(len(y), 6)
        data = DataLoader(TensorDataset(x, y), batch_size=64)
        result = audited(lambda: mlp(nn.BatchNorm1d), data)
        assert result.status is Status.WARN
        assert "independent samples" in result.message

    def test_the_full_batch_has_no_noise(self) -> None:
        assert audited(lambda: mlp(nn.BatchNorm1d), vectors(batch=512)).status is Status.PASS


class TestOneRow:
    def test_a_crash_for_want_of_a_second_row_is_explained(self) -> None:
        result = audited(lambda: mlp(nn.BatchNorm1d), vectors(rows=33, batch=32))
        assert result.status is Status.WARN
        assert "drop_last=True" in result.fix

    def test_a_last_batch_of_one_is_foreseen(self) -> None:
        result = audited(lambda: mlp(nn.BatchNorm1d), vectors(rows=513, batch=32))
        assert result.status is Status.WARN
        assert "last batch" in result.message
        assert "raises an error" in result.message

    def test_with_pixels_it_is_only_noise(self) -> None:
        result = audited(lambda: cnn(nn.BatchNorm2d), images(rows=97, batch=8))
        assert result.status is Status.WARN
        assert "raises" not in result.message

    def test_drop_last_and_other_remainders_pass(self) -> None:
        assert (
            audited(lambda: mlp(nn.BatchNorm1d), vectors(rows=513, drop_last=True)).status
            is Status.PASS
        )
        assert audited(lambda: mlp(nn.BatchNorm1d), vectors(rows=530)).status is Status.PASS

    def test_without_batch_normalisation_it_is_no_matter(self) -> None:
        assert audited(lambda: mlp(nn.LayerNorm), vectors(rows=513)).status is Status.PASS


def test_a_stream_without_length_passes() -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            generator = torch.Generator().manual_seed(0)
            return iter([(torch.randn(6, generator=generator), i % 3) for i in range(320)])

    data: DataLoader = DataLoader(Stream(), batch_size=32)
    assert audited(lambda: mlp(nn.BatchNorm1d), data).status is Status.PASS


def test_other_crashes_are_errors() -> None:
    class Broken(Dataset[Any]):
        def __len__(self) -> int:
            return 64

        def __getitem__(self, index: int) -> Any:
            raise OSError("disk")

    assert audited(lambda: mlp(None), DataLoader(Broken(), batch_size=8)).status is Status.ERROR


class TestEps:
    def test_a_momentum_in_the_place_of_eps_is_a_warning(self) -> None:
        norm = nn.BatchNorm1d(16, 0.8)
        result = audited(lambda: nn.Sequential(nn.Linear(6, 16), norm, nn.Linear(16, 3)))
        assert result.status is Status.WARN
        assert (result.module, result.measured) == ("1", "eps 0.8")
        assert "comes out as 0.75" in result.message
        assert "second argument is eps" in result.message

    @pytest.mark.parametrize("more", [{"eps": 1e-3}, {"eps": 0.05}, {"momentum": 0.8}])
    def test_what_is_named_or_small_is_none(self, more: dict[str, Any]) -> None:
        assert audited(lambda: mlp(lambda n: nn.BatchNorm1d(n, **more))).status is Status.PASS
