import pytest
import torch
from torch import nn

from nnaudit.targets.model_inputs import ModelInputs
from nnaudit.training.widen import widened


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        return self.head((x + self.depthwise(x)).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.width = self.size = width
        self.embed = nn.Embedding(20, width)
        self.place = nn.Parameter(torch.randn(1, 6, width))
        self.qkv = nn.Linear(width, 3 * width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids) + self.place
        q, k, v = self.qkv(self.norm(x)).split(self.size, dim=2)
        return self.head(x + nn.functional.scaled_dot_product_attention(q, k, v))


class Concatenating(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.table = nn.Linear(4, 8), nn.Embedding(3, 2)
        self.recurrent = nn.GRU(8 + 2 + 4, 8, batch_first=True)
        self.head = nn.Linear(8, 1)

    def forward(self, x, kind):
        joined = torch.cat([self.first(x).relu(), self.table(kind), x], -1)
        return self.head(self.recurrent(joined.unsqueeze(1))[0][:, -1])


PROGRAMS = {
    "perceptron": (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), (4,)),
    "residual": (Residual, (3, 8, 8)),
    "transposed": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 1, 2, 2)),
        (1, 8, 8),
    ),
    "encoder": (
        lambda: nn.Sequential(
            nn.Linear(6, 8),
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            nn.Flatten(),
            nn.Linear(24, 2),
        ),
        (3, 6),
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_copy_is_wider_and_answers_in_the_same_shape(name):
    build, shape = PROGRAMS[name]
    model, x = build().train(), torch.randn(4, *shape)
    wide = widened(model, ModelInputs((x,), {}, None), 4)
    assert wide is not None
    assert size(wide) > 3 * size(model)
    assert wide(x).shape == model(x).shape
    wide(x).sum().backward()
    assert all(p.grad is not None for p in wide.parameters())


def test_concatenations_follow():
    model = Concatenating()
    fed = ModelInputs((torch.randn(5, 4), torch.randint(0, 3, (5,))), {}, None)
    wide = widened(model, fed, 4)
    assert wide is not None
    assert wide.recurrent.input_size == 4 * 8 + 4 * 2 + 4
    assert wide(*fed.args).shape == (5, 1)


def test_the_users_own_numbers_and_ties_follow():
    model, ids = Attention(), torch.randint(0, 20, (2, 6))
    wide = widened(model, ModelInputs((ids,), {}, None), 4)
    assert wide is not None
    assert wide.place.shape == (1, 6, 64)
    assert wide.head.weight is wide.embed.weight
    assert wide(ids).shape == (2, 6, 20)


def test_the_model_is_left_alone():
    model = Residual()
    before = {name: p.clone() for name, p in model.named_parameters()}
    widened(model, ModelInputs((torch.randn(2, 3, 8, 8),), {}, None), 4)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not model.stem._forward_pre_hooks


def test_factor_one_draws_the_weights_anew():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    same = widened(model, ModelInputs((torch.randn(3, 4),), {}, None), 1)
    assert same is not None
    assert size(same) == size(model)
    assert not torch.equal(same[0].weight, model[0].weight)


class Stubborn(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return x + self.second(x + self.first(x))  # the skip ties the width to the input's


@pytest.mark.parametrize("build", [lambda: nn.Linear(4, 2), Stubborn])
def test_it_gives_up_where_nothing_can_grow(build):
    assert widened(build(), ModelInputs((torch.randn(3, 4),), {}, None), 4) is None
