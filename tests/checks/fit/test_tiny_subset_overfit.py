import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.fit.tiny_subset_overfit import TinySubsetOverfit
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.probes import subsets
from nnaudit.report import Status
from nnaudit.targets.target import Target

CE = F.cross_entropy


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.8),
        nn.Linear(512, 10),
    )


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.gru = nn.GRU(16, 32, batch_first=True)
        self.head = nn.Linear(32, 2)

    def forward(self, ids):
        return self.head(self.gru(self.embed(ids))[0][:, -1])


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Embedding(12, 32), nn.Embedding(8, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(32, 12)

    def forward(self, ids):
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        x = self.embed(ids) + self.place(torch.arange(ids.shape[1]))
        return self.head(self.blocks(x, mask=mask, is_causal=True))


class Variational(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(64, 8), nn.Linear(4, 64)

    def forward(self, x):
        mean, spread = self.encode(x.flatten(1)).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (spread / 2).exp()
        return self.decode(z), mean, spread


def evidence_bound(output, x):
    made, mean, spread = output
    kl = -0.5 * (1 + spread - mean**2 - spread.exp()).sum()
    return F.mse_loss(made, x.flatten(1), reduction="sum") + kl


def contrastive(model, batch):
    x = batch[0]
    one = F.normalize(model(x + 0.1 * torch.randn_like(x)), dim=1)
    other = F.normalize(model(x + 0.1 * torch.randn_like(x)), dim=1)
    return CE(one @ other.T / 0.5, torch.arange(len(x)))


def denoising(model, batch):
    x, t = batch[0].flatten(1), torch.rand(len(batch[0]), 1)
    noise = torch.randn_like(x)
    return F.mse_loss(model(torch.cat([(1 - t).sqrt() * x + t.sqrt() * noise, t], 1)), noise)


def frozen(hidden=64):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    model[1].requires_grad_(False)
    return model


def lbfgs(model):
    return torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")


@pytest.fixture(scope="session")
def healthy(tools, data):
    t, d = tools, data
    g = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 20, (200, 10), generator=g)
    text = torch.randint(0, 12, (300, 9), generator=g)
    marks = torch.stack([d.y > 4, d.y % 2 == 0], 1).float()
    mask = (d.x[:, 0] > 0).long()
    squashed = torch.sigmoid(d.x)
    order = d.y.argsort()
    mlp = t.perceptron(64, 64, 10)

    def images(**parts):
        return Target(**{"model": mlp, "train_loader": t.loader(d.x, d.y), "loss": CE} | parts)

    def numbers(**parts):
        return Target(**{
            "model": t.perceptron(10, 64, 64, 1),
            "train_loader": t.loader(d.features, d.quantity[:, None], batch_size=32),
            "loss": F.mse_loss,
        } | parts)  # fmt: skip

    def unlabelled(x, **parts):
        return Target(**{"train_loader": lambda: DataLoader(x, 64, shuffle=True)} | parts)

    return {
        "slow SGD": images(optimizer=t.sgd(0.01)),
        "slower SGD": images(optimizer=t.sgd(0.001)),
        "RMSprop": images(optimizer=lambda m: torch.optim.RMSprop(m.parameters(), 1e-3)),
        "LBFGS": images(optimizer=lbfgs),
        "no optimizer given": images(),
        "batch norm and dropout": images(model=convolutional, optimizer=t.sgd(0.1, momentum=0.9)),
        "label smoothing": images(loss=nn.CrossEntropyLoss(label_smoothing=0.1)),
        "class weights": images(loss=nn.CrossEntropyLoss(weight=torch.linspace(0.1, 3, 10))),
        "a sum": images(loss=nn.CrossEntropyLoss(reduction="sum")),
        "noise on the input": images(
            training_step=lambda m, b: CE(m(b[0] + torch.randn_like(b[0])), b[1])
        ),
        "a penalty": images(
            training_step=lambda m, b: (
                CE(m(b[0]), b[1]) + 1e-4 * sum(p.pow(2).sum() for p in m.parameters())
            )
        ),
        "batches of one": images(train_loader=t.loader(d.x, d.y, batch_size=1)),
        "twelve rows": images(train_loader=t.loader(d.x[:12], d.y[:12])),
        "sorted by class": images(
            train_loader=lambda: DataLoader(TensorDataset(d.x[order], d.y[order]), 64)
        ),
        "one-cycle": images(
            optimizer=t.adam(1e-2),
            scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, total_steps=400),
        ),
        "linear": images(model=t.perceptron(64, 10), optimizer=t.sgd(0.1)),
        "many labels": images(
            model=t.perceptron(64, 32, 2),
            train_loader=t.loader(d.x, marks),
            loss=F.binary_cross_entropy_with_logits,
        ),
        "equal inputs": Target(
            t.perceptron(2, 32, 3),
            t.loader(
                torch.randint(0, 2, (400, 2), generator=g).float(),
                torch.randint(0, 3, (400,), generator=g),
            ),
            loss=CE,
            optimizer=t.adam(1e-2),
        ),
        "regression": numbers(),
        "raw quantities": numbers(
            train_loader=t.loader(d.features, 300 + 90 * d.quantity[:, None]), loss=F.huber_loss
        ),
        "gaussian NLL": numbers(
            model=t.perceptron(10, 32, 2),
            loss=lambda o, y: F.gaussian_nll_loss(o[:, :1], y, F.softplus(o[:, 1:]) + 1e-3),
        ),
        "autoencoder": unlabelled(
            d.x.flatten(1), model=t.perceptron(64, 32, 6, 32, 64), loss=F.mse_loss
        ),
        "grey autoencoder": unlabelled(
            squashed.flatten(1),
            model=lambda: nn.Sequential(t.perceptron(64, 32, 64)(), nn.Sigmoid()),
            loss=F.binary_cross_entropy,
        ),
        "variational": unlabelled(d.x, model=Variational, loss=evidence_bound),
        "diffusion": images(model=t.perceptron(65, 128, 64), training_step=denoising),
        "contrastive": images(model=t.perceptron(64, 32, 16), training_step=contrastive),
        "recurrent": Target(Recurrent, t.loader(ids, (ids == 7).any(1).long()), loss=CE),
        "language": Target(
            Language,
            t.loader(text[:, :-1], text[:, 1:], batch_size=32),
            loss=lambda o, y: CE(o.flatten(0, 1), y.flatten()),
        ),
        "segmentation": Target(
            lambda: nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1)
            ),
            t.loader(d.x, mask),
            loss=CE,
            optimizer=t.adam(1e-2),
        ),
        "frozen backbone": images(model=frozen, optimizer=t.adam(1e-2)),
    }


NAMES = (
    "slow SGD", "slower SGD", "RMSprop", "LBFGS", "no optimizer given", "batch norm and dropout",
    "label smoothing", "class weights", "a sum", "noise on the input", "a penalty",
    "batches of one", "twelve rows", "sorted by class", "one-cycle", "linear", "many labels",
    "equal inputs", "regression", "raw quantities", "gaussian NLL",
    "autoencoder", "grey autoencoder", "variational", "diffusion", "contrastive", "recurrent",
    "language", "segmentation", "frozen backbone",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_healthy_programs_pass(name, healthy, tools):
    result = tools.ask(TinySubsetOverfit, healthy[name])
    assert result.status is Status.PASS, result.message
    assert result.evidence


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(64, 1), nn.Linear(1, 10)

    def forward(self, x):
        return self.head(self.body(x.flatten(1)).detach())


class Averaging(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x):
        return self.body(x).mean(0, keepdim=True).expand(len(x), 10)


def one_bias():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name == "3.bias"
    return model


def shuffling(model, batch):
    return CE(model(batch[0]), batch[1][torch.randperm(len(batch[1]))])


def another_model(model):
    return torch.optim.Adam(nn.Linear(2, 2).parameters())


@pytest.fixture(scope="session")
def faulty(tools, data):
    t, d = tools, data
    mlp = t.perceptron(64, 64, 10)

    def images(**parts):
        return Target(
            **{
                "model": mlp,
                "train_loader": t.loader(d.x, d.y),
                "loss": CE,
                "optimizer": t.adam(1e-3),
            }
            | parts
        )

    return {
        "only one bias is trained": images(model=one_bias),
        "activation after the last layer": Target(
            lambda: nn.Sequential(t.perceptron(10, 64, 1)(), nn.ReLU()),
            t.loader(d.features, -d.quantity.abs()[:, None]),
            loss=F.mse_loss,
        ),
        "softmax twice": images(model=lambda: nn.Sequential(mlp(), nn.Softmax(1))),
        "mean over the batch": images(model=Averaging),
        "targets shuffled": images(training_step=shuffling),
        "loss without the output": images(loss=lambda o, y: y.float().mean() + 0 * o.sum()),
        "optimizer of another model": images(optimizer=another_model),
        "inputs all alike": images(train_loader=t.loader(0 * d.x, d.y)),
    }


OTHERS = (
    "activation after the last layer", "softmax twice", "mean over the batch",
    "optimizer of another model",
)  # fmt: skip
"""The zoo holds programs with faults of these kinds, which are asked the same."""

FAULTS = (
    "only one bias is trained", "targets shuffled", "loss without the output", "inputs all alike",
    *(pytest.param(name, marks=pytest.mark.exhaustive) for name in OTHERS),
)  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults_fail(name, faulty, tools):
    result = tools.ask(TinySubsetOverfit, faulty[name])
    assert result.status is Status.FAIL, result.message
    assert result.fix


@pytest.mark.parametrize("rate", [1e3, 1e-9])
def test_a_rate_at_which_nothing_works_fails_and_one_that_works_is_named(tools, data, rate):
    target = Target(
        tools.perceptron(64, 64, 10),
        tools.loader(data.x, data.y),
        loss=CE,
        optimizer=tools.sgd(rate),
    )
    result = tools.ask(TinySubsetOverfit, target)
    assert result.status is Status.FAIL
    assert "lr=0.001" in result.fix


@pytest.mark.exhaustive
def test_a_bottleneck_that_cannot_be_exact_is_not_called_broken(tools, data):
    bottleneck = nn.Sequential(nn.Linear(64, 1), nn.Tanh(), nn.Linear(1, 64))
    target = Target(lambda: bottleneck, lambda: DataLoader(data.x.flatten(1), 64), loss=F.mse_loss)
    assert tools.ask(TinySubsetOverfit, target).status is not Status.FAIL


def test_a_line_through_a_curve_is_not_called_broken(tools):
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    y = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()
    target = Target(lambda: nn.Linear(2, 2), tools.loader(x, y), loss=CE, optimizer=tools.sgd(0.1))
    assert tools.ask(TinySubsetOverfit, target).status is Status.INCONCLUSIVE


def test_a_linear_regression_is_not_called_broken(tools, data):
    target = Target(
        lambda: nn.Linear(10, 1),
        tools.loader(data.features, data.quantity[:, None]),
        loss=F.mse_loss,
        optimizer=tools.sgd(0.05),
    )
    result = tools.ask(TinySubsetOverfit, target)
    assert result.status in (Status.PASS, Status.INCONCLUSIVE), result.message


@pytest.mark.exhaustive
def test_narrow_frozen_features_are_not_called_broken(tools, data):
    target = Target(
        lambda: frozen(3), tools.loader(data.x, data.y), loss=CE, optimizer=tools.adam(1e-3)
    )
    result = tools.ask(TinySubsetOverfit, target)
    assert result.status not in (Status.FAIL, Status.ERROR)


@pytest.mark.parametrize("expensive", [True, False])
def test_what_follows_from_an_exact_failure_is_not_proved_at_great_cost(
    expensive, faulty, tools, monkeypatch
):
    monkeypatch.setattr(subsets, "EXPENSIVE", 0.0 if expensive else math.inf)
    loop = DirectLoop(faulty["only one bias is trained"], torch.device("cpu"), seed=0)
    audit = Audit(loop)
    audit.broken.add("GRAD101")
    result = run_check(TinySubsetOverfit, audit)
    assert result.status is (Status.INCONCLUSIVE if expensive else Status.FAIL)
    assert ("GRAD101 has failed" in result.message) is expensive
    assert (list(audit.probe(subsets.TinyFitting).runs) == [1.0]) is expensive


def test_little_time_is_said(tools, data):
    target = Target(Detached, tools.loader(data.x, data.y), loss=CE, optimizer=tools.adam(1e-3))
    result = tools.ask(TinySubsetOverfit, target, budget=0.2)
    assert result.status is Status.INCONCLUSIVE


def test_the_program_is_left_as_it_was(tools, data):
    from nnaudit.context import Audit
    from nnaudit.engine.runner import run_check
    from nnaudit.loop.direct import DirectLoop

    loop = DirectLoop(
        Target(convolutional, tools.loader(data.x, data.y), loss=CE), torch.device("cpu"), seed=0
    )
    before = {name: value.clone() for name, value in loop.model.state_dict().items()}
    run_check(TinySubsetOverfit, Audit(loop))
    after = loop.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert loop.model[4].p == 0.8


@pytest.mark.exhaustive
def test_no_false_alarm_in_a_hundred_initialisations(tools):
    for seed in range(100):
        data = tools.Data(rows=160)
        width = 8 + seed % 5 * 16
        target = Target(
            tools.perceptron(64, width, 10),
            tools.loader(data.x, data.y),
            loss=CE,
            optimizer=tools.adam(10 ** -(2 + seed % 3)),
        )
        result = tools.ask(TinySubsetOverfit, target, seed=seed)
        assert result.status is not Status.FAIL, (seed, result.message)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["softmax twice", "mean over the batch", "targets shuffled"])
def test_power_over_initialisations(name, faulty, tools):
    failed = sum(
        tools.ask(TinySubsetOverfit, faulty[name], seed=seed).status is Status.FAIL
        for seed in range(1, 9)
    )
    assert failed >= 7
