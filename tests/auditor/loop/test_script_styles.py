"""Scripts of every style are driven unmodified: the same questions to each."""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnaudit.loop.base import Needs
from nnaudit.loop.script import ScriptLoop, run_script
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches

SCRIPTS = Path(__file__).parents[2] / "scripts"

pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass(frozen=True)
class Style:
    script: str
    argv: list[str] = field(default_factory=list)
    needs: str = ""
    model: str = "Sequential"
    per_step: int = 1
    free: bool = False
    inputs: int = 1
    optimizers: int = 1
    schedulers: int = 0
    has_val: bool = False
    has_target: bool = True
    repeats: bool = True
    drop: float = 0.5
    noise: float = 1e-6
    steps: int = 30

    def __str__(self) -> str:
        return "-".join([self.script, *self.argv]).replace("--", "")


STYLES = [
    Style("plain", ["--hidden", "32"], model="Net", has_val=True),
    Style("top_level", schedulers=1),
    Style("cycle", schedulers=1, drop=0.9),
    Style("get_batch", model="Tiny", free=True, inputs=2),
    # Its order of rows was drawn before the state that is put back.
    Style("slices", free=True, repeats=False),
    Style("accumulation", per_step=4, schedulers=1),
    Style("amp"),
    Style("lbfgs"),
    Style("gan", optimizers=2, drop=0.8, noise=0.1),
    Style("several", model="Ensemble"),
    Style("sparse", model="Bag", optimizers=2),
    Style("dicts", model="Bag", inputs=2),
    Style("stream"),
    # Its worker processes live on, with random numbers of their own.
    Style("workers", repeats=False),
    Style("compiled", schedulers=1, drop=0.9),
    Style("full_batch", model="Linear", per_step=4),
    Style("bounded", schedulers=1),
    Style("lookahead"),
    Style("lightning_fit", needs="lightning", model="Classifier", schedulers=1, has_val=True),
    Style("lightning_fit", ["2"], "lightning", "Classifier", per_step=2, schedulers=1,
          has_val=True),
    Style("hf_trainer", [], "transformers", "BertForSequenceClassification", inputs=4, schedulers=1,
          has_val=True, drop=0.98),
    Style("hf_trainer", ["2"], "transformers", "BertForSequenceClassification", inputs=4,
          per_step=2, schedulers=1, has_val=True, drop=0.98),
    Style("accelerated", needs="accelerate", per_step=2, schedulers=1),
    Style("ignited", needs="ignite", has_val=True),
    Style("skorched", needs="skorch", model="Net"),
    Style("fastai_learner", needs="fastai", has_val=True),
    Style("configured", ["lr=0.05"], needs="hydra"),
]  # fmt: skip


@pytest.mark.parametrize("style", STYLES, ids=str)
def test_script_is_driven(style: Style, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if style.needs:
        pytest.importorskip(style.needs)
    monkeypatch.chdir(tmp_path)
    facts = run_script(
        SCRIPTS / f"{style.script}.py", style.argv, "cpu", 0, lambda loop: ask(loop, style)
    )

    assert facts["losses"][-1] < style.drop * facts["losses"][0], "a fixed batch is learnt"
    assert facts["losses"] == facts["again"], "the state is put back, and the run repeats itself"
    assert facts["weights"][0] == facts["weights"][1], (
        "weights, optimizer and buffers are as they were"
    )
    assert facts["moved"], "a step moves the weights"
    assert facts["train_loss"] == pytest.approx(facts["losses"][0], rel=1e-6)
    assert facts["eval_losses"][0] == pytest.approx(facts["eval_losses"][1], rel=style.noise)
    assert facts["kept_modes"]
    assert facts["same_seed"] == facts["start"], "relaunched under its own seed it is the same run"
    assert facts["other_seed"] != facts["start"]
    assert facts["other_steps"] == facts["steps_taken"], "relaunched runs count"
    assert facts["back"][0] == facts["start"][0]
    assert facts["back"] == facts["start"] or not style.repeats
    assert not list(tmp_path.iterdir()), "nothing is written where the script was started"


def test_a_script_that_uses_gradients_of_its_inputs_is_fed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fed(loop: ScriptLoop) -> tuple[Any, Any]:
        batch = next(iter(loop.batches()))
        return batch, loop.split_batch(batch)

    monkeypatch.chdir(tmp_path)
    batch, found = run_script(SCRIPTS / "adversarial.py", [], "cpu", 0, fed)
    assert torch.equal(found.target, batch[1])
    assert found.args[0].shape == batch[0].shape


def test_a_step_that_is_only_looked_at_works_with_sparse_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked_at(loop: ScriptLoop) -> Any:
        return loop._steps.undone_step(next(iter(loop.batches())), None).calls

    monkeypatch.chdir(tmp_path)
    assert run_script(SCRIPTS / "sparse.py", [], "cpu", 0, looked_at)


def ask(loop: ScriptLoop, style: Style) -> dict[str, Any]:
    roles = loop.run.roles
    assert roles is not None
    assert type(loop.model).__name__ == style.model
    assert roles.per_step == style.per_step
    assert loop.run.without_loader == style.free
    assert len(loop.optimizers) == style.optimizers
    assert len(loop.schedulers) == style.schedulers
    assert (loop.val_loader is not None) == style.has_val
    assert loop.lacks(Needs.STEPS) == "" == loop.lacks(Needs.FRESH_RUN)
    describes(loop, style)

    facts: dict[str, Any] = {"start": start_of(loop)}
    with preserved(loop.subjects):
        interrogate(loop, style, facts)
    facts["back"] = start_of(loop)
    return facts


def interrogate(loop: ScriptLoop, style: Style, facts: dict[str, Any]) -> None:
    batch = next(iter(loop.batches()))
    before = fingerprint(loop)
    with preserved(loop.subjects):
        facts["losses"] = [loop.step(batch).loss for _ in range(style.steps)]
    with preserved(loop.subjects):
        facts["again"] = [loop.step(batch).loss for _ in range(style.steps)]
    facts["weights"] = before, fingerprint(loop)
    with preserved(loop.subjects):
        loop.step(batch)
        loop.step(batch)  # a warm-up may begin at a rate of zero
        facts["moved"] = fingerprint(loop) != before
    with preserved(loop.subjects):
        facts["train_loss"] = loop.forward(batch, train=True).loss
    modes = [m.training for m in loop.model.modules()]
    facts["eval_losses"] = [loop.forward(batch).loss for _ in range(2)]
    facts["kept_modes"] = modes == [m.training for m in loop.model.modules()]

    fed = loop.split_batch(batch)
    assert len(fed.inputs) == style.inputs
    assert (fed.target is not None) == style.has_target
    observed(loop, batch, style)
    steps = loop.steps_taken
    with loop.relaunched(0) as other:
        assert isinstance(other, ScriptLoop)
        assert other.info().parts == loop.info().parts
        assert not other.lacks(Needs.STEPS)
        facts["same_seed"] = start_of(other)
        other.step(next(iter(other.batches())))
        facts["other_steps"] = other.steps_taken
    facts["steps_taken"] = steps + 1
    with loop.relaunched(1) as other:
        facts["other_seed"] = start_of(other)
    if style.has_val:
        assert list(batches.tensors(next(iter(loop.val_batches()))))


def describes(loop: ScriptLoop, style: Style) -> None:
    info = loop.info()
    parts = {part.name: part for part in info.parts}
    assert info.form == "script"
    assert {"model", "train_loader", "val_loader", "batch", "loss", "optimizer"} <= parts.keys()
    assert ("accumulation" in parts) == (style.per_step > 1)
    for name in ("optimizer", "loss", "training_step", "train_loader"):
        place = loop.locate(name)
        assert place is not None, name
        assert Path(place.file).name == f"{style.script}.py", name


def observed(loop: ScriptLoop, batch: Any, style: Style) -> None:
    step = None
    with preserved(loop.subjects):
        step = loop.step(batch, observe=True)
    assert step.observation is not None
    assert step.observation.total_loss == step.loss
    assert step.seconds > 0
    assert step.lr
    assert {g.parameter for g in step.observation.gradients} <= {
        n for n, _ in loop.model.named_parameters()
    }
    assert all(g.norm is not None and g.owned for g in step.observation.gradients)
    assert step.observation.output is not None
    assert step.observation.training_flags


def start_of(loop: ScriptLoop) -> tuple[str, list[str]]:
    """The initial weights and the first batches, as content."""
    with preserved(loop.subjects):
        weights = fingerprint(loop)
        first = [batches.digest(b) for b, _ in zip(loop.batches(), range(2), strict=False)]
    return weights, first


def fingerprint(loop: ScriptLoop) -> str:
    tensors: list[Tensor] = [*loop.model.parameters(), *loop.model.buffers()]
    for optimizer in loop.optimizers:
        for state in optimizer.state.values():
            tensors += [v for v in state.values() if isinstance(v, torch.Tensor)]
        tensors += [torch.tensor(float(g["lr"])) for g in optimizer.param_groups]
    return batches.digest([t.detach() for t in tensors])


def test_packages_of_all_styles_are_known() -> None:
    """A misspelt optional package would skip its style for ever."""
    known = {"lightning", "transformers", "accelerate", "ignite", "skorch", "fastai", "hydra"}
    assert {style.needs for style in STYLES} - {""} == known
    assert importlib.util.find_spec("torch") is not None


PER_SAMPLE = """
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
x = torch.randn(64, 4)
loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8, shuffle=True)
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

def one(params, a, b):
    return nn.functional.mse_loss(functional_call(model, params, (a[None],)), b[None])

for a, b in loader:
    params = dict(model.named_parameters())
    optimizer.zero_grad()
    STEP
    optimizer.step()
"""


@pytest.mark.parametrize(
    "step",
    [
        # Gradients by sample, with no backward pass.
        "for n, g in vmap(grad(one), (None, 0, 0))({n: p.detach() for n, p in params.items()}, a, "
        "b).items(): params[n].grad = g.mean(0)",
        "vmap(one, (None, 0, 0))(params, a, b).mean().backward()",
    ],
)
def test_a_network_that_is_called_in_a_transform_is_not_listened_to(
    step: str, tmp_path: Path
) -> None:
    file = tmp_path / "train.py"
    file.write_text(PER_SAMPLE.replace("STEP", step))

    def body(loop: ScriptLoop) -> list[bool]:
        before = [p.clone() for p in loop.model.parameters()]
        loop.step(next(iter(loop.batches())))
        return [not torch.equal(a, b) for a, b in zip(before, loop.model.parameters(), strict=True)]

    assert all(run_script(file, [], "cpu", 0, body))
