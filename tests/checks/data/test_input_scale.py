from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.data.input_scale import InputScale, roughness_as_pixels
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def pixels(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def mlp(inputs: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, 2))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def ask(x: Tensor, model: Any = mlp, y: Tensor | None = None, **parts: Any) -> Result:
    data = TensorDataset(x, torch.arange(len(x)) % 2 if y is None else y)
    loader = DataLoader(data, 32, shuffle=True)
    target = Target(model, lambda: loader, **parts)
    return run_check(InputScale, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


# --- scale ---------------------------------------------------------------------------------------


def test_a_column_in_the_hundreds_is_warned_of() -> None:
    x = normal(128, 8)
    x[:, 3] = 500 + 100 * x[:, 3]
    result = ask(x)
    assert result.status is Status.WARN
    assert "1 of the 8 input channels" in result.message
    assert "channel 3" in result.message
    assert result.module == "0"


def test_pixels_up_to_255_are_warned_of() -> None:
    result = ask((255 * pixels(128, 1, 8, 8)).round(), cnn)
    assert result.status is Status.WARN
    assert result.fix == "x = x / 255"


def normalising_cnn(channels: int = 1) -> nn.Module:
    first = nn.Conv2d(channels, 4, 3, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(4), *list(cnn())[1:])


def test_pixels_that_a_normalisation_hides_are_warned_of() -> None:
    result = ask((255 * pixels(128, 1, 8, 8)).round(), normalising_cnn)
    assert result.status is Status.WARN
    assert "The normalisation after it" in result.message


@pytest.mark.parametrize(
    ("scale", "columns", "status"),
    [(300.0, 8, Status.WARN), (10.0, 8, Status.PASS), (300.0, 2, Status.PASS)],
    ids=["one outweighs seven", "a little", "of two"],
)
def test_a_column_that_outweighs_the_others_before_a_normalisation(
    scale: float, columns: int, status: Status
) -> None:
    x = normal(128, columns)
    x[:, 1] *= scale
    model = lambda: nn.Sequential(  # noqa: E731
        nn.Linear(columns, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 2)
    )
    result = ask(x, model)
    assert result.status is status
    assert ("the others are lost" in result.message) is (status is Status.WARN)


def test_other_planes_before_a_normalisation_pass() -> None:
    maps = (255 * pixels(128, 6, 8, 8)).round()  # as many as no picture has
    assert ask(maps, lambda: normalising_cnn(6)).status is Status.PASS
    assert ask(300 * normal(128, 1, 8, 8), normalising_cnn).status is Status.PASS
    raw = (255 * pixels(128, 1, 8, 8)).round()
    scaled = lambda: nn.Sequential(nn.BatchNorm2d(1), normalising_cnn())  # noqa: E731
    assert ask(raw, scaled).status is not Status.WARN


def test_pixels_divided_twice_are_warned_of() -> None:
    assert ask(pixels(128, 1, 8, 8) / 255, cnn).status is Status.WARN
    assert ask(pixels(128, 784) / 255, lambda: mlp(784)).status is Status.WARN


def test_pixels_divided_twice_and_shifted_are_warned_of() -> None:
    result = ask((pixels(128, 1, 8, 8) / 255 - 0.5) / 0.5, cnn)
    assert result.status is Status.WARN
    assert "hardly vary" in result.message


@pytest.mark.parametrize(
    ("x", "model"),
    [
        (normal(128, 8), mlp),
        (pixels(128, 1, 8, 8), cnn),
        ((16 * pixels(128, 64)).round(), lambda: mlp(64)),
        (torch.eye(200)[torch.arange(128)], lambda: mlp(200)),
        (F.normalize(pixels(128, 3000) * (pixels(128, 3000) > 0.99)), lambda: mlp(3000)),
    ],
    ids=["standardised", "pixels", "0..16", "one-hot", "tf-idf"],
)
def test_the_usual_inputs_pass(x: Tensor, model: Any) -> None:
    assert ask(x, model).status is Status.PASS


class Scaling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = cnn()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x / 255 - 0.5)


def test_what_the_network_scales_itself_passes() -> None:
    assert ask(255 * pixels(128, 1, 8, 8), Scaling).status is Status.PASS


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.Sequential(nn.BatchNorm1d(8, affine=False), mlp()),
        lambda: nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)),
        lambda: nn.Sequential(nn.LayerNorm(8), mlp()),
    ],
)
def test_a_normalisation_takes_the_scale_out(model: Any) -> None:
    assert ask(300 * normal(128, 8), model).status in (Status.PASS, Status.SKIP)


def test_a_frozen_layer_before_is_a_layer() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.head = nn.Linear(8, 8), nn.Linear(8, 2)
            self.trunk.requires_grad_(False)
            with torch.no_grad():
                self.trunk.weight.mul_(500)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.trunk(x))

    result = ask(normal(128, 8), Frozen)
    assert result.status is Status.PASS
    assert "trunk" in result.message


def test_features_of_a_trunk_without_gradient_are_not_judged() -> None:
    class Trunk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                features = 500 * self.trunk(x)
            return self.head(features)

    assert ask(normal(128, 8), Trunk).status is Status.SKIP


def test_what_went_in_is_known_although_the_step_raises() -> None:
    result = ask(300 * normal(128, 8), y=torch.full((128,), 7))
    assert result.status is Status.WARN


def test_a_teacher_that_is_written_to_in_place() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = nn.Linear(8, 2), nn.Linear(8, 2)
            self.teacher.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            self.teacher.weight.mul_(0.99)
            return self.student(x)

    assert ask(normal(128, 8), Pair).status is Status.PASS


def test_checkpointed_layers_are_no_doors() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rest = nn.Linear(8, 16), mlp(16)
            with torch.no_grad():
                self.first.weight.mul_(200)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.rest, self.first(x), use_reentrant=True)

    result = ask(normal(128, 8), Checkpointed)
    assert result.status is Status.PASS
    assert "first" in result.message


def test_ids_are_no_numbers() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(1000, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x).mean(1))

    assert ask(torch.randint(1000, (128, 5)), Words).status is Status.SKIP


def test_a_first_state_of_zeros_is_no_input() -> None:
    class Writer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.start = nn.GRUCell(8, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            state, word = self.start(x), torch.zeros(len(x), 8)
            for _ in range(3):
                word = state = self.cell(word, state)
            return self.head(state)

    assert ask(normal(128, 8), Writer).status is Status.PASS


def test_packed_sequences_are_looked_into() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.head = nn.GRU(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_sequence(list(x))
            return self.head(self.read(packed)[1][0])

    assert ask(100 * normal(128, 5, 8), Reader).status is Status.WARN
    assert ask(normal(128, 5, 8), Reader).status is Status.PASS


# --- constant ------------------------------------------------------------------------------------


def test_constant_inputs_fail() -> None:
    result = ask(torch.zeros(128, 8))
    assert result.status is Status.FAIL
    assert "128 rows" in result.message
    assert ask(normal(1, 8).expand(128, 8)).status is Status.FAIL


def test_constant_inputs_and_targets_are_noted() -> None:
    assert ask(torch.zeros(128, 8), y=torch.zeros(128).long()).status is Status.NOTE


def test_one_row_that_differs_is_enough() -> None:
    x = torch.zeros(128, 8)
    x[77] = 1.0
    assert ask(x).status is not Status.FAIL


def test_a_constant_grid_beside_a_varying_code_is_fine() -> None:
    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.code, self.net = nn.Embedding(128, 8), mlp(16)

        def forward(self, grid: Tensor, number: Tensor) -> Tensor:
            return self.net(torch.cat([grid, self.code(number)], 1))

    def step(model: nn.Module, batch: Any) -> Tensor:
        grid, number = batch
        return F.cross_entropy(model(grid, number), number % 2)

    result = ask(torch.ones(128, 8), Field, y=torch.arange(128), training_step=step)
    assert result.status is not Status.FAIL


def test_a_model_of_which_only_parts_are_called_was_given_nothing() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(8, 4), nn.Linear(4, 2)

    def step(model: Any, batch: Any) -> Tensor:
        return F.cross_entropy(model.decoder(model.encoder(batch[0]).relu()), batch[1])

    result = ask(normal(128, 8), Parts, training_step=step)
    assert result.status is Status.PASS
    assert "encoder" in result.message


# --- the order of places and colours --------------------------------------------------------------


def colour_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def smooth_pixels(grey: bool = False) -> Tensor:
    """Pictures as (N, H, W, 3) that vary slowly over the places."""
    coarse = pixels(64, 1 if grey else 3, 4, 4)
    return F.interpolate(coarse, 16, mode="bilinear").expand(-1, 3, -1, -1).permute(0, 2, 3, 1)


@pytest.mark.parametrize("grey", [False, True])
def test_pictures_that_were_reshaped_fail_and_permuted_ones_pass(grey: bool) -> None:
    x = smooth_pixels(grey)
    result = ask(x.reshape(64, 3, 16, 16), colour_cnn)
    assert result.status is Status.FAIL, result.message
    assert "permute" in result.fix
    assert ask(x.permute(0, 3, 1, 2).contiguous(), colour_cnn).status is Status.PASS


def test_blank_pictures_have_no_order_either() -> None:
    assert bool((roughness_as_pixels(torch.ones(4, 3, 8, 8)) == 1).all())


class Asked(nn.Module):
    """A picture and a question, of which one side may be blank."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.read = nn.Conv2d(3, 4, 3), nn.Linear(6, 4)

    def forward(self, picture: Tensor, question: Tensor) -> Tensor:
        return self.see(picture).mean((2, 3))[:, :2] + self.read(question)[:, :2]


@pytest.mark.parametrize(("contrast", "status"), [(0.0, Status.WARN), (1.0, Status.PASS)])
def test_a_convolution_over_blank_pictures_warns(contrast: float, status: Status) -> None:
    def step(model: nn.Module, batch: Any) -> Tensor:
        picture, question = batch
        return F.cross_entropy(model(picture, question), (question[:, 0] > 0).long())

    x = contrast * pixels(64, 3, 16, 16) - 1.0
    result = ask(x, Asked, y=normal(64, 6), training_step=step)
    assert result.status is status, result.message


def test_noise_has_no_order_to_be_told() -> None:
    assert ask(pixels(64, 3, 16, 16), colour_cnn).status is Status.PASS
    ratios = roughness_as_pixels(pixels(64, 3, 16, 16))
    assert 0.9 < float(ratios.median()) < 1.1
