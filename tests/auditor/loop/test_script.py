"""What happens around a script: its failures, its files, its seeds, its end."""

import gc
import hashlib
import importlib
import io
import random
import sys
import textwrap
import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnaudit.errors import NeverStepsError, RepeatError, TargetError, UnfitError, UserCodeError
from nnaudit.loop.base import Needs
from nnaudit.loop.control import constant_lr, without_dropout
from nnaudit.loop.planned_rate import planned_lr
from nnaudit.loop.script import ScriptLoop, run_script
from nnaudit.loop.script.rebinding import adopt
from nnaudit.loop.script.training_objects import Registers
from nnaudit.loop.total_loss import call_of_total
from nnaudit.loop.trace import EventKind, Recorder
from nnaudit.measure.seeding import watching_seeds
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches
from nnaudit.training.fitting import updates_by

SCRIPTS = Path(__file__).parents[2] / "scripts"

HEAD = """
import sys, os, random
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
x = torch.randn(64, 4)
loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8, shuffle=True)
model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
"""

BODY = """
for epoch in range(3):
    for a, b in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(a), b)
        loss.backward()
        optimizer.step()
"""


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a script's text in a folder of its own, with ``body`` on its loop."""
    monkeypatch.chdir(tmp_path)

    def run(
        text: str, body: Callable[[ScriptLoop], Any] = lambda loop: None, argv: tuple[str, ...] = ()
    ) -> Any:
        path = tmp_path / "train.py"
        path.write_text(textwrap.dedent(text))
        return run_script(path, list(argv), "cpu", 0, body)

    return run


def first(loop: ScriptLoop) -> Any:
    return next(iter(loop.batches()))


def weights(loop: ScriptLoop) -> str:
    return batches.digest([p.detach() for p in loop.model.parameters()])


LABELS_FIRST = """
import torch
from torch import nn
from torch.utils.data import DataLoader

rows = [{"labels": i % 3, "x": torch.randn(4)} for i in range(32)]

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x=None, labels=None):
        out = self.layer(x)
        return nn.functional.cross_entropy(out, labels), out

model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(9):
    for batch in DataLoader(rows, batch_size=8):
        loss, _ = model(**batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def test_labels_may_come_first_in_a_batch(drive: Any) -> None:
    assert drive(LABELS_FIRST, lambda loop: loop.lacks(Needs.TARGETS)) == ""


WITHIN_BACKWARD = """
optimizers = {p: torch.optim.SGD([p], lr=0.05) for p in model.parameters()}
def update(p):
    optimizers[p].step()
    optimizers[p].zero_grad()
for p in model.parameters():
    p.register_post_accumulate_grad_hook(update)
for epoch in range(3):
    for a, b in loader:
        nn.functional.mse_loss(model(a), b).backward()
"""


def test_optimizers_may_step_while_gradients_are_computed(drive: Any) -> None:
    def body(loop: ScriptLoop) -> None:
        batch = next(iter(loop.batches()))
        looked = loop.forward(batch, train=True)
        assert looked.loss is not None and looked.output.shape == (8, 1)
        before = loop.model[0].weight.detach().clone()
        loop.step(batch)
        assert not torch.equal(loop.model[0].weight, before)

    drive(HEAD + WITHIN_BACKWARD, body)


# --- failures -------------------------------------------------------------------------------------


def test_a_crash_before_the_first_step_is_the_users(drive: Any) -> None:
    with pytest.raises(UserCodeError) as caught:
        drive(HEAD + "model(torch.zeros(3, 5))\n" + BODY)
    assert caught.value.exit_code == 4
    assert caught.value.location is not None
    assert caught.value.location.line == len(HEAD.splitlines()) + 1
    assert "nnaudit" not in caught.value.traceback
    assert "before its first optimizer step" in str(caught.value)


def test_a_script_that_never_trains_is_told_so(drive: Any) -> None:
    with pytest.raises(TargetError, match=r"train\.py ended without an optimizer step.*after --"):
        drive(HEAD + "if len(sys.argv) > 1:\n" + textwrap.indent(BODY, "    "))
    assert (
        drive(
            HEAD + "if len(sys.argv) > 1:\n" + textwrap.indent(BODY, "    "),
            lambda loop: 7,
            ("go",),
        )
        == 7
    )


def test_a_script_whose_optimizer_never_steps_is_told_where(drive: Any) -> None:
    text = HEAD + BODY.replace("optimizer.step()", "optimizer.step")
    line = 1 + text.splitlines().index("        optimizer.step")
    with pytest.raises(NeverStepsError, match=f"line {line} names step without calling it"):
        drive(text)


def test_a_script_of_one_step_is_told_to_take_two(drive: Any) -> None:
    with pytest.raises(TargetError, match="ended after 1 optimizer step"):
        drive(HEAD + BODY + "        break\n    break\n")


def test_a_missing_argument_is_reported_with_the_usage(drive: Any) -> None:
    text = """
    import argparse
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.parse_args()
    """
    with pytest.raises(TargetError, match=r"exit code 2.*required: --data.*after --") as caught:
        drive(text)
    assert "usage: train.py" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "import sys\nsys.exit('set DATA first')",
            "ended with the message 'set DATA first' before",
        ),
        ("import sys\nsys.exit()", "ended without an optimizer step"),
        (
            "import torch\nw = torch.zeros(1, requires_grad=True)\n"
            "o = torch.optim.SGD([w], lr=1.0)\n"
            "for _ in range(3):\n    w.sum().backward()\n    o.step()\n",
            "took 3 optimizer steps without calling an nn.Module",
        ),
    ],
)
def test_a_script_without_training_to_audit_is_told_why(drive: Any, text: str, said: str) -> None:
    with pytest.raises(TargetError, match=said):
        drive(text)


def test_a_script_that_asks_for_input_is_told_that_there_is_none(
    drive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(UserCodeError, match=r"EOFError.*reads standard input"):
        drive("folder = input('data? ')")


def test_an_error_of_the_auditor_comes_out(drive: Any) -> None:
    def body(loop: ScriptLoop) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        drive(HEAD + BODY, body)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no such file"):
        run_script(tmp_path / "nothing.py", [], "cpu", 0, lambda loop: None)


def test_a_crash_in_a_step_costs_that_step_only(drive: Any) -> None:
    def body(loop: ScriptLoop) -> None:
        a, b = first(loop)
        model, before = loop.model, weights(loop)
        with preserved(loop.subjects):
            expected = [loop.step((a, b)).loss for _ in range(3)]
        with preserved(loop.subjects):
            loop.step((a, b))
            with pytest.raises(UserCodeError, match="while running the training step") as caught:
                loop.step((a[:, :2], b), observe=True)
        assert caught.value.observation is not None  # type: ignore[attr-defined]
        assert caught.value.location is not None
        assert loop.model is model
        assert weights(loop) == before
        with preserved(loop.subjects):
            assert [loop.step((a, b)).loss for _ in range(3)] == expected
        assert loop.run.reruns == 1

    drive(HEAD + BODY, body)


@pytest.mark.filterwarnings("ignore")
def test_a_lightning_module_logs_to_the_trainer_that_runs_it_again(drive: Any) -> None:
    pytest.importorskip("lightning")

    def body(loop: ScriptLoop) -> None:
        x, y = first(loop)
        with preserved(loop.subjects):
            expected = [loop.step((x, y)).loss for _ in range(2)]
        with preserved(loop.subjects), pytest.raises(UserCodeError):
            loop.step((x[:, :5], y))
        assert [loop.step((x, y)).loss for _ in range(2)] == expected
        assert loop.run.reruns == 1

    drive((SCRIPTS / "lightning_fit.py").read_text(), body)


def test_a_script_that_swallows_everything_is_still_ended(drive: Any) -> None:
    text = HEAD + "while True:\n    try:\n" + textwrap.indent(BODY, "        ")
    text += "    except BaseException:\n        pass\n    if len(os.listdir('.')) == 0: break\n"
    text = text.replace("while True", "for attempt in range(3)")
    assert drive(text, lambda loop: loop.step(first(loop)).loss > 0)


# --- the end of a script --------------------------------------------------------------------------


def test_a_script_that_has_ended_goes_on_in_the_modes_of_its_training(drive: Any) -> None:
    """It has left those of its last validation, and a state that is kept then would come back."""
    text = HEAD.replace("loader = ", "_ = ") + textwrap.dedent("""
        for epoch in range(2):
            model.train()
            for rows in torch.randperm(64).split(16):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(x[rows]), x[rows].sum(1, keepdim=True)).backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                model(x)
        """)

    def body(loop: ScriptLoop) -> None:
        batch = next(loop.batches())
        for _ in range(20):
            loop.step(batch)
            assert loop.model.training
        assert loop.run.reruns > 1

    drive(text, body)


def test_what_a_library_makes_as_it_is_imported_is_made_once(
    drive: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "site-packages"
    library.mkdir()
    (library / "activations_of_mine.py").write_text(
        "from torch import nn\nclass Bent(nn.Module):\n"
        "    def forward(self, x): return x.relu()\nREADY = {'bent': Bent()}\n"
    )
    monkeypatch.syspath_prepend(str(library))
    head = HEAD.replace("model = ", "import activations_of_mine\nmodel = ", 1)
    assert head != HEAD

    def body(loop: ScriptLoop) -> int:
        batch = first(loop)
        assert all(loop.step(batch).loss > 0 for _ in range(12))
        return loop.run.reruns

    text = head + "iterator = iter(loader)\nfor step in range(5):\n    a, b = next(iterator)\n"
    text += "    optimizer.zero_grad()\n    nn.functional.mse_loss(model(a), b).backward()\n"
    assert drive(text + "    optimizer.step()\n", body) > 0


def test_an_object_that_is_gone_keeps_its_place_among_those_of_an_execution() -> None:
    first_time, again = Registers(), Registers()
    kept = [nn.ReLU(), nn.Linear(2, 2)]
    for one in kept:
        first_time.of["module"].add(one)
    gone, network = nn.ReLU(), nn.Linear(2, 2)
    for one in (gone, network):
        again.of["module"].add(one)
    del one, gone
    gc.collect()
    adopt(first_time, again, (), ())
    assert network.__dict__ is kept[1].__dict__


@pytest.mark.parametrize(
    "loop_head",
    ["for step in range(5):\n", "step = 0\nwhile step < 5:\n    step += 1\n"],
    ids=["for", "while"],
)
def test_a_script_that_ends_goes_on(drive: Any, loop_head: str) -> None:
    text = HEAD + "parameters = list(model.parameters())\niterator = iter(loader)\n" + loop_head
    text += """
    a, b = next(iterator)
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(a), b)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 0.1)
    optimizer.step()
"""
    endless = text.replace("range(5)", "range(10**6)").replace("step < 5", "step < 10**6")

    def body(loop: ScriptLoop) -> tuple[list[float], str, int]:
        batch = first(loop)
        losses = [loop.step(batch).loss for _ in range(12)]
        return losses, weights(loop), loop.run.reruns

    losses, end, reruns = drive(text, body)
    assert reruns >= 2
    assert (losses, end, 0) == drive(endless, body), "the seams do not show"


def test_what_listens_is_gone_after_the_script_was_run_again(drive: Any) -> None:
    counting = BODY.replace("range(3)", "range(1)").replace("a, b in", "i, (a, b) in enumerate(")
    counting = counting.replace("loader:", "loader):\n        share = i / 8")
    counting = counting.replace("loss.backward", "(loss * (1 + share)).backward")

    def body(loop: ScriptLoop) -> None:
        batch = first(loop)
        steps = [loop.step(batch, observe=True) for _ in range(12)]
        assert loop.run.reruns
        assert [len(step.observation.loss_calls) for step in steps if step.observation] == [1] * 12
        assert not any(each._forward_hooks for each in loop.model.modules())

    drive(HEAD + counting, body)


def test_running_it_again_is_not_seeding_in_between(drive: Any) -> None:
    def body(loop: ScriptLoop) -> None:
        batch = first(loop)
        with watching_seeds() as watch:
            for _ in range(30):
                loop.step(batch)
        assert loop.run.reruns
        assert watch.seen == []

    bounded = "for step in range(5):\n        a, b = next(iterator)\n"
    text = "iterator = iter(loader)\n" + BODY.replace("for a, b in loader:\n", bounded)
    drive(HEAD + text.replace("range(3)", "range(1)"), body)


def test_counters_belong_to_the_state(drive: Any) -> None:
    text = (
        HEAD
        + "count = 0\n"
        + BODY.replace(
            "        optimizer.zero_grad()\n",
            "        optimizer.zero_grad()\n        count += 1\n"
            "        optimizer.param_groups[0]['lr'] = 0.1 / count\n",
        )
    )

    def body(loop: ScriptLoop) -> None:
        batch = first(loop)
        with preserved(loop.subjects):
            rates = [loop.step(batch).lr[0] for _ in range(4)]
        assert rates == pytest.approx([0.1, 0.05, 0.1 / 3, 0.025])
        assert loop.step(batch).lr[0] == pytest.approx(0.1)

    drive(text, body)


def test_counters_within_functions_belong_to_the_state(drive: Any) -> None:
    text = (
        HEAD
        + "def main():\n    count = 0\n"
        + textwrap.indent(BODY, "    ").replace(
            "            optimizer.zero_grad()\n",
            "            optimizer.zero_grad()\n            count += 1\n"
            "            optimizer.param_groups[0]['lr'] = 0.1 / count\n",
        )
        + "main()\n"
    )

    def body(loop: ScriptLoop) -> None:
        batch = first(loop)
        with preserved(loop.subjects):
            assert [loop.step(batch).lr[0] for _ in range(3)] == pytest.approx([0.1, 0.05, 0.1 / 3])
        assert loop.step(batch).lr[0] == pytest.approx(0.1)

    drive(text, body)


# --- steps and forwards ---------------------------------------------------------------------------


def test_the_script_sees_a_copy_of_the_batch(drive: Any) -> None:
    text = HEAD + BODY.replace("optimizer.zero_grad()", "optimizer.zero_grad(); a.mul_(2)")

    def body(loop: ScriptLoop) -> None:
        batch = first(loop)
        digest = batches.digest(batch)
        loop.step(batch)
        assert batches.digest(batch) == digest
        # What the model sees is not what the loader yields, and feed() says what it sees.
        assert torch.equal(loop.split_batch(batch).args[0], batch[0] * 2)

    drive(text, body)


def test_knobs_of_the_auditor_work_in_the_scripts_thread(drive: Any) -> None:
    def body(loop: ScriptLoop) -> None:
        batch = first(loop)
        with preserved(loop.subjects), without_dropout(loop.model):
            losses = {loop.forward(batch, train=True).loss for _ in range(3)}
        assert len(losses) == 1
        with preserved(loop.subjects):
            assert len({loop.forward(batch, train=True).loss for _ in range(3)}) == 3
        with preserved(loop.subjects), constant_lr(loop, 10.0):
            loop.step(batch)
            assert loop.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.5)

    # F.dropout, which only a mode of the thread that trains can switch off.
    text = HEAD.replace("nn.Dropout(0.5)", "nn.Identity()") + BODY.replace(
        "model(a)", "model(nn.functional.dropout(a, 0.5, model.training))"
    )
    drive(text, body)


def test_a_hand_written_loss_is_found_by_asking_the_script(drive: Any) -> None:
    text = HEAD + BODY.replace(
        "nn.functional.mse_loss(model(a), b)", "((model(a) - b) ** 2).mean()"
    )

    def body(loop: ScriptLoop) -> None:
        a, b = first(loop)
        with preserved(loop.subjects), torch.no_grad():
            seen = loop.forward((a, b))
            loop.model.eval()
            assert seen.loss == pytest.approx(float(F.mse_loss(loop.model(a), b)), rel=1e-5)
            assert torch.allclose(seen.output, loop.model(a))
        fed = loop.split_batch((a, b))
        assert torch.equal(fed.target, b)
        assert not loop.lacks(Needs.TARGETS)

    drive(text, body)


def test_rows_of_a_batch_may_be_taken(drive: Any) -> None:
    def body(loop: ScriptLoop) -> None:
        batch = batches.take(first(loop), 3)
        assert loop.step(batch).loss > 0
        assert len(loop.split_batch(batch).args[0]) == 3

    drive(HEAD + BODY, body)


def test_a_constant_batch_is_told_to_be_stuck(drive: Any) -> None:
    text = HEAD + BODY.replace(
        "        optimizer.step()", "        if a.sum() != 0: optimizer.step()"
    )

    def body(loop: ScriptLoop) -> None:
        a, b = first(loop)
        with pytest.raises(Exception, match="without an optimizer step"):
            loop.step((torch.zeros_like(a), b))
        assert loop.step((a, b)).loss > 0

    drive(text, body)


def test_an_autoencoder_has_no_targets_of_its_own(drive: Any) -> None:
    text = HEAD.replace("nn.Linear(16, 1)", "nn.Linear(16, 4)").replace(
        "TensorDataset(x, x.sum(1, keepdim=True))", "TensorDataset(x)"
    ) + BODY.replace("for a, b in", "for (a,) in").replace("model(a), b", "model(a), a")

    def body(loop: ScriptLoop) -> None:
        fed = loop.split_batch(first(loop))
        assert fed.target is fed.args[0]
        assert loop.lacks(Needs.TARGETS) == "the batches hold inputs only"

    drive(text, body)


@pytest.mark.parametrize(
    "held",
    [
        "class Data:\n    def __init__(self):\n        self.train_dl, self.val_dl = loader, other\n"
        "data = Data()\n",
        "data = {'train': loader, 'val': other}\n",
    ],
    ids=["attribute", "entry"],
)
def test_a_validation_loader_is_found_in_what_holds_it(drive: Any, held: str) -> None:
    made = "def make():\n    return DataLoader(TensorDataset(x, x), batch_size=5)\n"
    unnamed = held.replace("other", "make()")

    def body(loop: ScriptLoop) -> None:
        assert loop.val_loader.batch_size == 5
        assert loop.train_loader.batch_size == 8

    drive(HEAD + made + unnamed + BODY, body)


def test_validation_within_the_loop_is_cut_short(drive: Any) -> None:
    text = (
        HEAD
        + """
val_loader = DataLoader(TensorDataset(x, x), batch_size=1)
seen = []
def validate():
    model.eval()
    with torch.no_grad():
        for a, _ in val_loader:
            model(a)
            seen.append(1)
    model.train()
"""
        + BODY
        + "        validate()\n        sys.seen = len(seen)\n"
    )

    def body(loop: ScriptLoop) -> None:
        assert loop.val_loader.batch_size == 1
        batch, before = first(loop), sys.seen  # type: ignore[attr-defined]
        assert before == 64
        for _ in range(3):
            loop.step(batch)
        assert sys.seen == before + 3  # type: ignore[attr-defined]
        assert len(list(loop.val_batches())) == 64

    drive(text, body)
    del sys.seen  # type: ignore[attr-defined]


def test_a_loop_whose_batches_cannot_be_replaced_says_so(drive: Any) -> None:
    text = (
        HEAD
        + """
while True:
    i = torch.randint(64, (8,))
    loss = ((model(x[i] * 2) - x[i].sum(1, keepdim=True)) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
    )

    def body(loop: ScriptLoop) -> None:
        for need in (Needs.STEPS, Needs.TRAIN_LOADER, Needs.TARGETS):
            assert "draws its batches itself" in loop.lacks(need)
        assert loop.lacks(Needs.OWN_STEPS) == ""
        batch, losses = first(loop), []
        for _ in range(2):
            with preserved(loop.subjects):
                losses.append(loop.step(batch).loss)
        assert losses[0] == losses[1]
        absent = [part for part in loop.info().parts if part.origin == "absent"]
        assert {part.name for part in absent} == {"train_loader", "val_loader"}

    drive(text, body)


# --- finding the loop -----------------------------------------------------------------------------


BASELINE = """
baseline = nn.Linear(4, 1)
fast = torch.optim.SGD(baseline.parameters(), lr=0.1)
for _ in range(40):
    fast.zero_grad()
    nn.functional.mse_loss(baseline(x), x.sum(1, keepdim=True)).backward()
    fast.step()
"""


def test_a_loop_without_a_loader_may_come_before_the_training(drive: Any) -> None:
    def body(loop: ScriptLoop) -> None:
        assert not loop.run.without_loader
        assert len(loop.model) == 4, "it is not the baseline"  # type: ignore[arg-type]
        assert len(loop.optimizers) == 1, "nor is its optimizer still one of the training's"
        assert loop.step(first(loop)).loss > 0
        with loop.relaunched(1) as other:
            assert len(other.model) == 4  # type: ignore[arg-type]

    drive(HEAD + BASELINE + BODY, body)


@pytest.mark.parametrize("rounds", [40, 10**9])
def test_a_loader_that_is_only_read_aside_is_not_waited_for(
    drive: Any, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    monkeypatch.setattr("nnaudit.loop.script.discovery.WAIT", 0.5)

    def body(loop: ScriptLoop) -> None:
        assert loop.run.without_loader
        assert loop.model.in_features == 4
        assert loop.step(first(loop)).loss > 0

    drive(HEAD + BASELINE.replace("range(40)", f"range({rounds})"), body)


def test_a_loader_may_be_begun_anew_for_every_batch(drive: Any) -> None:
    text = HEAD + BODY.replace("for epoch in range(3):", "while True:").replace(
        "for a, b in loader:", "for a, b in [next(iter(loader))]:"
    )

    def body(loop: ScriptLoop) -> None:
        assert not loop.run.without_loader
        assert not loop.epoch_per_step
        assert loop.next_epoch(first(loop)) is None
        assert loop.lacks(Needs.TARGETS) == ""
        assert len(list(loop.batches())) == 8
        loop.step(first(loop))
        assert loop.run.reruns == 0

    drive(text, body)


def test_gradients_may_come_from_torch_func(drive: Any) -> None:
    text = (
        HEAD
        + """
from torch.func import functional_call, grad
parameters = {name: p for name, p in model.named_parameters()}
def loss(parameters, a, b):
    return nn.functional.mse_loss(functional_call(model, parameters, (a,)), b)
for a, b in loader:
    for name, gradient in grad(loss)(parameters, a, b).items():
        parameters[name].grad = gradient
    optimizer.step()
"""
    )

    def body(loop: ScriptLoop) -> None:
        assert len(list(loop.batches())) == 8
        assert "no backward() was seen" in loop.lacks(Needs.STEPS)

    drive(text, body)


ATTACK = """
    a = a.clone().requires_grad_()
    for _ in range(2):
        nn.functional.mse_loss(model(a), b).backward()
    a = (a + 0.1 * a.grad.sign()).detach()
"""


@pytest.mark.parametrize("zeroing", ["optimizer.zero_grad", "model.zero_grad"])
def test_an_attack_on_the_inputs_is_not_part_of_the_loss(drive: Any, zeroing: str) -> None:
    text = HEAD.replace("nn.Dropout(0.5)", "nn.Identity()") + BODY.replace(
        "        optimizer.zero_grad()",
        textwrap.indent(ATTACK, "    ") + f"        {zeroing}()",
    )
    text += "        said.append(loss.item())\n"

    def body(loop: ScriptLoop) -> None:
        said = vars(sys.modules["__main__"])["said"]
        step = loop.step(first(loop))
        assert step.loss == pytest.approx(said[-1])
        assert loop.run.roles is not None
        assert loop.run.roles.divisor == 1

    drive("said = []\n" + text, body)


def test_what_is_zeroed_before_the_step_was_the_loss_of_the_step(drive: Any) -> None:
    text = HEAD + BODY.replace("        optimizer.zero_grad()\n", "").replace(
        "        optimizer.step()", "        optimizer.zero_grad()\n        optimizer.step()"
    )

    def body(loop: ScriptLoop) -> None:
        batch, before = first(loop), weights(loop)
        assert loop.step(batch).loss > 0
        assert weights(loop) == before

    drive(text, body)


def test_the_first_step_of_a_script_that_begins_again_is_not_recorded(drive: Any) -> None:
    def body(loop: ScriptLoop) -> None:
        a, b = first(loop)
        with pytest.raises(UserCodeError):
            loop.step((a[:, :2], b))
        with Recorder(loop) as recorder:
            loop.step((a, b))
        kinds = [event.kind for event in recorder.events]
        assert loop.run.reruns == 1
        assert kinds.count(EventKind.BACKWARD) == 1

    drive(HEAD + BODY, body)


def test_an_attack_gets_its_gradient_where_batches_are_drawn(drive: Any) -> None:
    text = (
        HEAD.replace("nn.Dropout(0.5)", "nn.Identity()")
        + """
while True:
    i = torch.randint(64, (8,))
    a, b = x[i], x[i].sum(1, keepdim=True)
"""
        + ATTACK
        + """
    optimizer.zero_grad()
    nn.functional.mse_loss(model(a), b).backward()
    optimizer.step()
"""
    )

    def body(loop: ScriptLoop) -> None:
        assert loop.run.without_loader
        batch = first(loop)
        assert loop.step(batch).loss < 1e9
        assert loop.run.reruns == 0

    drive(text, body)


# --- relaunching ----------------------------------------------------------------------------------


def starts(loop: ScriptLoop) -> dict[int, str]:
    found = {}
    for seed in (0, 1, 2):
        with loop.relaunched(seed) as other:
            assert isinstance(other, ScriptLoop)
            found[seed] = weights(other)
    return found


def test_a_seed_set_by_the_script_follows_the_seed_of_the_relaunch(drive: Any) -> None:
    def body(loop: ScriptLoop) -> None:
        found = starts(loop)
        assert found[0] == weights(loop)
        assert len(set(found.values())) == 3

    drive(HEAD + BODY, body)


def test_a_loss_made_before_seeding_is_no_network(drive: Any) -> None:
    text = HEAD.replace("torch.manual_seed(0)", "loss_fn = nn.MSELoss()\ntorch.manual_seed(0)")
    assert len(set(drive(text + BODY, starts).values())) == 3


def test_a_seed_reset_inside_stays(drive: Any) -> None:
    text = HEAD.replace("model = nn", "torch.manual_seed(42)\nmodel = nn") + BODY
    assert len(set(drive(text, starts).values())) == 1


def test_a_computed_seed_follows(drive: Any) -> None:
    text = HEAD.replace("model = nn", "SEED = 42\ntorch.manual_seed(SEED)\nmodel = nn") + BODY
    assert len(set(drive(text, starts).values())) == 3


@pytest.mark.filterwarnings("ignore")  # torch.distributed deprecates parts of its own
def test_a_group_of_processes_is_joined_once(drive: Any) -> None:
    text = (
        HEAD
        + """
from torch import distributed
distributed.init_process_group("gloo", init_method="file://" + os.path.abspath("group"),
                               rank=0, world_size=1)
model = nn.parallel.DistributedDataParallel(model)
"""
        + BODY
        + "distributed.destroy_process_group()\n"
    )

    def body(loop: ScriptLoop) -> None:
        with loop.relaunched(1) as other:
            assert weights(other) != weights(loop)
            other.step(first(other))
        for _ in range(3 * 8 + 1):
            loop.step(first(loop))

    drive(text, body)
    assert not torch.distributed.is_initialized()


def test_modules_beside_the_script_are_executed_anew(drive: Any, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("import torch\nmade = torch.nn.Linear(1, 1)\n")
    text = HEAD + "import beside\nmodel.append(beside.made)\n"
    text += "optimizer.add_param_group({'params': beside.made.parameters()})\n" + BODY

    def body(loop: ScriptLoop) -> None:
        with loop.relaunched(0) as other:
            assert weights(other) == weights(loop)
            mine = {id(p) for p in loop.model.parameters()}
            assert not any(id(p) in mine for p in other.model.parameters())

    drive(text, body)
    assert "beside" not in sys.modules
    assert not (tmp_path / "__pycache__").exists()


def test_a_package_above_the_script_may_be_reached_by_dots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "above" / "task"
    folder.mkdir(parents=True)
    (tmp_path / "above" / "__init__.py").touch()
    (folder / "parts.py").write_text("import torch\nmade = torch.nn.Linear(4, 4)\n")
    script = folder / "train.py"
    text = "import sys\nsys.path.append('../../')\nfrom above.task.parts import made\n"
    script.write_text(text + HEAD + "model.insert(0, made)\n" + BODY)
    monkeypatch.chdir(folder)

    def body(loop: ScriptLoop) -> None:
        with loop.relaunched(0) as other:
            assert other.step(first(other)).loss > 0  # type: ignore[arg-type]

    try:
        run_script(script, [], "cpu", 0, body)
    finally:
        for name in ("above", "above.task", "above.task.parts"):
            sys.modules.pop(name, None)


def test_only_the_last_of_two_runs_takes_steps(drive: Any) -> None:
    def body(loop: ScriptLoop) -> None:
        batch = first(loop)
        with loop.relaunched(1) as other:
            with pytest.raises(RuntimeError, match="on top of one another"):
                loop.step(batch)
            assert other.step(batch).loss > 0
        assert loop.step(batch).loss > 0

    drive(HEAD + BODY, body)


def test_a_relaunch_left_open_is_closed(drive: Any) -> None:
    def body(loop: ScriptLoop) -> Any:
        left_open = loop.relaunched(1)
        other = left_open.__enter__()
        other.step(first(other))  # type: ignore[arg-type]
        return left_open, loop

    left_open, loop = drive(HEAD + BODY, body)
    with pytest.raises(RuntimeError, match="not running any more"):
        loop.step(None)
    left_open.__exit__(None, None, None)


@pytest.mark.parametrize("how", ["raise ValueError('once only')", "sys.exit(1)"])
def test_what_a_library_remembers_is_no_error_of_the_script(drive: Any, how: str) -> None:
    text = HEAD + f"if hasattr(random, 'taken'): {how}\nrandom.taken = True\n" + BODY

    def body(loop: ScriptLoop) -> None:
        with pytest.raises(RepeatError), loop.relaunched(1):
            pass
        assert loop.step(first(loop)).loss > 0

    try:
        drive(text, body)
    finally:
        vars(random).pop("taken", None)


def test_a_relaunch_that_crashes_is_an_error_of_the_relaunch(drive: Any) -> None:
    text = HEAD + "if torch.initial_seed() != 0: raise ValueError('only zero')\n" + BODY

    def body(loop: ScriptLoop) -> None:
        with pytest.raises(UserCodeError, match="only zero"), loop.relaunched(1):
            pass
        assert loop.step(first(loop)).loss > 0

    drive(text, body)


# --- no trace -------------------------------------------------------------------------------------

WRITER = """
import json, pathlib, pickle, shutil
here = pathlib.Path(__file__).parent
for folder in (pathlib.Path("runs/a"), here / "logs"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.txt").write_text("hello")
    assert (folder / "log.txt").read_text() == "hello"
    assert [p.name for p in folder.iterdir()] == ["log.txt"]
torch.save(model.state_dict(), "model.pt")
torch.load("model.pt")
torch.save({"a": 1}, here / "other.pt")
np.save("array.npy", np.zeros(3))
assert np.load("array.npy").sum() == 0
with open("kept.txt", "a") as file:
    file.write("more")
assert pathlib.Path("kept.txt").read_text() == "contentmore"
pathlib.Path("metrics.json").write_text(json.dumps({}))
os.remove("doomed.txt")
assert not os.path.exists("doomed.txt")
os.rename("kept.txt", "renamed.txt")
assert os.path.exists("renamed.txt") and not os.path.exists("kept.txt")
assert sorted(os.listdir("folder")) == ["inside.txt"]
shutil.rmtree("folder")
assert not os.path.exists("folder")
os.makedirs("folder/new")
assert os.listdir("folder") == ["new"]
shutil.copy("model.pt", "copy.pt")
os.symlink("copy.pt", "link.pt")
os.chdir("folder")
open("deep.txt", "w").close()
os.chdir("..")
assert sorted(os.listdir("folder")) == ["deep.txt", "new"]
"""


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in sorted(folder.rglob("*"))
    }


def test_files_stay_as_they_were(drive: Any, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("content")
    (tmp_path / "doomed.txt").write_text("content")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside.txt").write_text("content")
    text = HEAD + WRITER + BODY + "        torch.save(model, 'each.pt')\n"
    (tmp_path / "train.py").write_text(textwrap.dedent(text))
    before = tree(tmp_path)

    def body(loop: ScriptLoop) -> None:
        batch = first(loop)
        loop.step(batch)
        with loop.relaunched(1) as other:
            other.step(batch)

    drive(text, body)
    assert tree(tmp_path) == before


def test_the_process_is_as_it_was(drive: Any) -> None:
    import builtins
    import os

    importlib.import_module("torch._dynamo")  # puts functions of its own in the place of torch's
    names = ("open", "stat", "mkdir", "scandir", "remove", "rename")
    before = [getattr(os, name) for name in names]
    patched = [
        (torch.nn.Module, "__init__"), (torch.nn.Module, "__call__"), (torch.autograd, "backward"),
        (torch.utils.data.DataLoader, "__iter__"), (torch.optim.Optimizer, "__init__"),
        (torch, "manual_seed"), (torch, "save"), (builtins, "open"), (builtins, "__import__"),
    ]  # fmt: skip
    real = [getattr(owner, name) for owner, name in patched]
    state, main, argv, path = (
        torch.get_rng_state(),
        sys.modules["__main__"],
        sys.argv,
        list(sys.path),
    )
    drive(
        HEAD + BODY + "        os.environ['TOUCHED'] = '1'\n", lambda loop: loop.step(first(loop))
    )
    assert [getattr(os, name) for name in names] == before
    assert [getattr(owner, name) for owner, name in patched] == real
    assert torch.equal(torch.get_rng_state(), state)
    assert (sys.modules["__main__"], sys.argv, sys.path) == (main, argv, path)
    assert "TOUCHED" not in os.environ
    assert not any(thread.name == "nnaudit" for thread in threading.enumerate())


# --- locations ------------------------------------------------------------------------------------


def test_findings_point_at_the_line_that_made_the_object(drive: Any) -> None:
    lines = (HEAD + BODY).splitlines()

    def line_of(text: str) -> int:
        return 1 + next(i for i, line in enumerate(lines) if text in line)

    def body(loop: ScriptLoop) -> None:
        expected = {
            "model": "model = nn.Seq",
            "train_loader": "loader = Data",
            "optimizer": "optimizer = ",
            "loss": "mse_loss",
            "training_step": "loss.backward()",
        }
        for part, text in expected.items():
            place = loop.locate(part)
            assert place is not None
            assert place.line == line_of(text), part
        place = loop.locate(loop.model[0])
        assert place is not None
        assert place.line == line_of("model = nn.Seq")
        assert loop.locate("val_loader") is None
        assert loop.locate("scheduler") is None

    drive(HEAD + BODY, body)


def test_a_layer_is_located_in_its_network(drive: Any) -> None:
    def body(loop: ScriptLoop) -> None:
        source = (SCRIPTS / "plain.py").read_text().splitlines()
        place = loop.locate(loop.model.fc2)
        assert place is not None
        assert "self.fc2 =" in source[place.line - 1]
        made = loop.locate("model")
        assert made is not None
        assert "model = Net(" in source[made.line - 1]

    run_script(SCRIPTS / "plain.py", ["--hidden", "8"], "cpu", 0, body)


# --- between epochs -------------------------------------------------------------------------------

VALIDATION = """
val_loader = DataLoader(TensorDataset(x, x), batch_size=16)
ran = sys.ran = []
def validate():
    model.eval()
    with torch.no_grad():
        for a, _ in val_loader:
            model(a)
    ran.append(1)
"""


def epochs(between: str, more: str = "") -> str:
    return HEAD + more + VALIDATION + BODY.replace("range(3)", "range(50)") + f"    {between}\n"


def test_an_epoch_can_be_ended(drive: Any) -> None:
    def body(loop: ScriptLoop) -> None:
        batch, before = first(loop), weights(loop)
        with preserved(loop.subjects):
            loop.step(batch)
            step = loop.next_epoch(batch)
            assert len(sys.ran) == 1  # type: ignore[attr-defined]
            assert step is not None
            assert step.loss > 0
            assert step.lr == pytest.approx((0.025,)), "the scheduler's step is part of it"
            assert not step.observation.training_flags["1"], "nothing called model.train() again"
        assert weights(loop) == before
        assert loop.step(batch).lr == (0.05,)
        assert loop.run.reruns == 0

    schedule = "schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)\n"
    drive(epochs("validate(); schedule.step()", schedule), body)
    del sys.ran  # type: ignore[attr-defined]


def test_train_mode_is_chosen_anew(drive: Any) -> None:
    def body(loop: ScriptLoop) -> None:
        step = loop.next_epoch(first(loop))
        assert step is not None
        assert step.observation is not None
        assert all(step.observation.training_flags.values())

    drive(epochs("validate(); model.train()"), body)
    del sys.ran  # type: ignore[attr-defined]


@pytest.mark.parametrize("between", ["break", "raise RuntimeError('one batch is too few')"])
def test_where_no_epoch_follows_the_loop_goes_on(drive: Any, between: str) -> None:
    def body(loop: ScriptLoop) -> None:
        batch = first(loop)
        with preserved(loop.subjects):
            expected = [loop.step(batch).loss for _ in range(2)]
        with preserved(loop.subjects):
            assert loop.next_epoch(batch) is None
        with preserved(loop.subjects):
            assert [loop.step(batch).loss for _ in range(2)] == expected

    drive(epochs(between), body)
    del sys.ran  # type: ignore[attr-defined]


def test_a_cycle_has_no_epochs(drive: Any) -> None:
    text = HEAD + "from itertools import cycle\n" + BODY.replace("in loader", "in cycle(loader)")

    def body(loop: ScriptLoop) -> None:
        batch = first(loop)
        loop.step(batch)
        assert loop.next_epoch(batch) is None
        assert loop.step(batch).loss > 0

    drive(text, body)


def test_the_targets_of_a_validation_are_its_own(drive: Any) -> None:
    text = (
        HEAD
        + """
for step in range(12):
    i = torch.randint(64, (8,))
    a, b = x[i], x[i].sum(1, keepdim=True)
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(a), b)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        nn.functional.mse_loss(model(x), x.sum(1, keepdim=True))
"""
    )

    def body(loop: ScriptLoop) -> None:
        batch = first(loop)
        assert len(batch[0]) == 8
        assert [loop.step(batch).loss > 0 for _ in range(3)] == [True] * 3

    drive("import warnings\nwarnings.simplefilter('error')\n" + text, body)


@pytest.mark.parametrize("epochs", [50, 2])
def test_an_epoch_ends_with_the_loader_where_the_script_cannot_go_on(
    drive: Any, epochs: int
) -> None:
    head = f"for epoch in range({epochs}):\n    print(1 // len(x))\n    for i, (a, b) in "
    text = BODY.replace("for epoch in range(3):\n    for a, b in ", head + "enumerate(")
    text = HEAD + text.replace("(loader:", "(loader):\n        LATE")
    # What a function does with the count is not seen in the loop's text.
    text = text.replace(
        "for epoch in", "def late(n):\n    1 // (len(loader) > n)\n\n\nfor epoch in", 1
    )
    count = "        print(i)\n"

    def body(loop: ScriptLoop) -> tuple[list[float], str, bool]:
        batch = first(loop)
        with preserved(loop.subjects):
            losses = [loop.step(batch, observe=True).loss for _ in range(20)]
        with preserved(loop.subjects):
            assert [loop.step(batch).loss for _ in range(20)] == losses
        return losses, weights(loop), loop.run.stops_at_loader_end

    goes_on = drive(text.replace("LATE\n", "\n" + count), body)
    fails = drive(text.replace("LATE\n", "\n" + count + "        print(late(i))\n"), body)
    assert (goes_on[2], fails[2]) == (False, True)
    assert goes_on[:2] == fails[:2], "the seams do not show"


@pytest.mark.parametrize("epochs", [50, 3])
def test_an_epoch_ends_with_the_loader_where_the_script_counts(drive: Any, epochs: int) -> None:
    """Eight batches: no count goes beyond seven, and the last window of three has two."""
    text = (
        HEAD
        + f"""
seen = []
for epoch in range({epochs}):
    for i, (a, b) in enumerate(loader):
        group = min(3, len(loader) - i // 3 * 3)
        seen.append((i, group))
        (nn.functional.mse_loss(model(a), b) / group).backward()
        if (i + 1) % 3 == 0 or i + 1 == len(loader):
            optimizer.step()
            optimizer.zero_grad()
"""
    )

    def body(loop: ScriptLoop) -> list[tuple[int, int]]:
        batch = first(loop)
        for _ in range(30):
            assert loop.step(batch).loss > 0
        found: list[tuple[int, int]] = sys.modules["__main__"].seen
        return found

    seen = drive(text, body)
    assert {i for i, _ in seen} == set(range(8))
    assert {(i, group) for i, group in seen if i > 5} == {(6, 2), (7, 2)}


def test_a_schedule_that_is_at_its_end_is_no_failure(drive: Any) -> None:
    cycle = "cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=24)\n"

    def body(loop: ScriptLoop) -> None:
        batch = first(loop)
        assert len([loop.step(batch) for _ in range(40)]) == 40
        with pytest.raises(ValueError, match="number of total steps is 24"):
            loop.schedulers[0].step()

    drive(HEAD + cycle + BODY + "        cycle.step()\n", body)


def test_a_network_is_saved_and_copied_without_the_auditors_hooks(drive: Any) -> None:
    text = HEAD.replace("nn.ReLU()", "nn.LSTM(16, 16), Outputs()")
    text = text.replace(
        "model = nn", "Outputs = type('Outputs', (nn.Module,), {'forward': take})\nmodel = nn"
    )
    text = text.replace(
        "import torch\n", "import copy, io, torch\ndef take(self, x): return x[0]\n"
    )
    text += BODY + "        torch.save(model, io.BytesIO())\n"
    text += "        sys.hooks = len(copy.deepcopy(model)[0]._forward_hooks)\n"

    def body(loop: ScriptLoop) -> None:
        assert loop.step(first(loop), observe=True).observation is not None
        loop.step(first(loop))
        assert sys.hooks == 0  # type: ignore[attr-defined]

    drive(text, body)
    del sys.hooks  # type: ignore[attr-defined]


# --- what is carried from step to step ------------------------------------------------------------


def test_a_state_carried_from_batch_to_batch_belongs_to_the_state(drive: Any) -> None:
    text = HEAD.replace(
        "nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 1))",
        "nn.GRU(4, 1, batch_first=True)",
    )
    text += "def main():\n    state = None\n" + textwrap.indent(
        BODY.replace(
            "loss = nn.functional.mse_loss(model(a), b)",
            "out, state = model(a[:, None], state)\n        state = state.detach()\n"
            "        loss = nn.functional.mse_loss(out[:, 0], b)",
        ),
        "    ",
    )

    def body(loop: ScriptLoop) -> None:
        batch = first(loop)
        losses = []
        for _ in range(2):
            with preserved(loop.subjects):
                losses.append([loop.step(batch).loss for _ in range(4)])
        assert losses[0] == losses[1]

    drive(text + "main()\n", body)


def test_a_state_beside_a_batch_that_is_drawn_stays(drive: Any) -> None:
    text = (
        HEAD.replace(
            "nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 1))",
            "nn.LSTM(4, 1, batch_first=True)",
        )
        + """
state = (torch.ones(1, 8, 1), torch.zeros(1, 8, 1))
while True:
    i = torch.randint(64, (8,))
    a, b = x[i][:, None], x[i].sum(1, keepdim=True)[:, None]
    optimizer.zero_grad()
    out, state = model(a, tuple(part.detach() for part in state))
    loss = nn.functional.mse_loss(out, b)
    loss.backward()
    optimizer.step()
"""
    )

    def body(loop: ScriptLoop) -> None:
        assert loop.run.without_loader
        assert loop.lacks(Needs.STEPS) == ""
        batch = first(loop)
        with preserved(loop.subjects):
            expected = [loop.step(batch).loss for _ in range(3)]
        with preserved(loop.subjects):
            assert [loop.step(batch).loss for _ in range(3)] == expected
        assert expected[2] < expected[0]
        assert loop.step(batches.take(batch, 3)).loss > 0
        args = loop.split_batch(batches.take(batch, 3)).args
        assert [tuple(part.shape) for part in args[1]] == [(1, 3, 1), (1, 3, 1)]

    drive(text, body)


def by_hand(rate: str, made: float) -> str:
    return (
        HEAD.replace("lr=0.05", f"lr={made}")
        + "count = 0\n"
        + BODY.replace(
            "        optimizer.zero_grad()\n",
            "        optimizer.zero_grad()\n        count += 1\n"
            f"        for group in optimizer.param_groups: group['lr'] = {rate}\n",
        )
    )


def test_a_warm_up_by_hand_has_the_height_that_its_optimizer_was_made_with(drive: Any) -> None:
    def body(loop: ScriptLoop) -> None:
        assert not loop.rates_rise
        assert planned_lr(loop, loop.optimizers[0].param_groups[0]) == 0.05
        assert loop.step(first(loop)).lr[0] == pytest.approx(0.0005)

    drive(by_hand("0.05 * min(count / 100, 1)", 0.05), body)


def test_of_a_rate_that_rises_beyond_the_height_is_not_known(drive: Any) -> None:
    assert drive(by_hand("1e-5 * count", 0.0), lambda loop: loop.rates_rise)
    assert not drive(HEAD + BODY, lambda loop: loop.rates_rise)


def test_a_script_without_an_optimizer_is_told_what_nnaudit_sees(drive: Any) -> None:
    text = HEAD + BODY.replace(
        "optimizer.step()", "[p.data.add_(p.grad, alpha=-0.01) for p in model.parameters()]"
    )
    with pytest.raises(TargetError, match=r"called backward\(\) 24 time.*torch optimizer"):
        drive(text)


def test_an_optimizer_that_holds_copies_is_audited_all_the_same(drive: Any) -> None:
    text = HEAD + "import copy\ncopies = copy.deepcopy(model)\n"
    text += "optimizer = torch.optim.SGD(copies.parameters(), lr=0.05)\n" + BODY

    def body(loop: ScriptLoop) -> None:
        before = weights(loop)
        loop.step(first(loop))
        assert weights(loop) == before
        assert type(loop.model).__name__ == "Sequential"

    drive(text, body)


def test_a_network_of_an_earlier_execution_can_be_pickled(drive: Any, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("from torch import nn\nclass Net(nn.Linear):\n    pass\n")
    text = HEAD + "import beside\nmodel = beside.Net(4, 1)\n"
    text += "optimizer = torch.optim.SGD(model.parameters(), lr=0.05)\n"
    text += BODY.replace("range(3)", "range(1)").replace("in loader", "in list(loader)[:2]")
    text += "torch.save(model, 'model.pt')\nassert isinstance(model, beside.Net)\n"
    text = (
        text.replace("for a, b in list(loader)[:2]", "for _ in range(2)")
        .replace(
            "        optimizer.zero_grad()",
            "        a, b = next(iterator)\n        optimizer.zero_grad()",
        )
        .replace("import beside\n", "import beside\niterator = iter(loader)\n")
    )

    def body(loop: ScriptLoop) -> None:
        batch = first(loop)
        for _ in range(2):
            with preserved(loop.subjects):
                losses = [loop.step(batch).loss for _ in range(5)]
                assert losses[-1] < losses[0]
        assert loop.run.reruns >= 3

    drive(text, body)


WITHOUT_LOADER = """
def batch():
    {draw}
    return x[i], x[i].sum(1, keepdim=True)
everything = x, x.sum(1, keepdim=True)
for step in range(30):
    a, b = {chosen}
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(b, model(a))
    loss.backward()
    optimizer.step()
"""


@pytest.mark.parametrize(
    ("draw", "chosen", "whole"),
    [
        ("i = slice(None)", "everything", True),
        ("i = torch.randint(64, (8,))", "batch()", False),
        # The same numbers again, in another place: one batch of many, drawn under one seed.
        ("g = torch.Generator(); i = torch.randint(64, (8,), generator=g)", "batch()", False),
    ],
)  # fmt: skip
def test_the_very_same_tensors_in_every_step_are_one_epoch(
    drive: Any, draw: str, chosen: str, whole: bool
) -> None:
    def twice(loop: ScriptLoop) -> list[Any]:
        return [list(loop.batches()) for _ in range(2)]

    one, two = drive(HEAD + WITHOUT_LOADER.format(draw=draw, chosen=chosen), twice)
    assert len(one) == len(two) == (1 if whole else 100)
    assert batches.digest(one[0]) == batches.digest(two[0]) or not whole


@pytest.mark.parametrize("arguments", ["model(a), b", "b, model(a)"])
@pytest.mark.parametrize("loader", [False, True])
def test_prediction_and_target_may_come_in_either_order(
    drive: Any, arguments: str, loader: bool
) -> None:
    def seen(loop: ScriptLoop) -> Any:
        batch = next(iter(loop.batches()))
        doubled = tuple(2 * part for part in batch)
        step, forward = loop.step(doubled, observe=True), loop.forward(doubled)
        assert step.observation is not None
        return (
            loop.split_batch(doubled).target,
            doubled,
            call_of_total(step.observation),
            forward.loss_calls,
        )

    draw = {"draw": "i = torch.randint(64, (8,))", "chosen": "batch()"}
    text = BODY if loader else WITHOUT_LOADER.format(**draw)
    text = text.replace("b, model(a)", "model(a), b").replace("model(a), b", arguments)
    target, (_, wanted), call, calls = drive(HEAD + text, seen)
    assert torch.equal(target, wanted)
    assert torch.equal(call.target, wanted)
    assert torch.equal(calls[0].target, wanted)


COUNTED = """
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
step = 0
while step < 10_000:
    at = 8 * (step % 8)
    optimizer.zero_grad()
    nn.functional.mse_loss(model(x[at : at + 8]), x[at : at + 8].sum(1, keepdim=True)).backward()
    optimizer.step()
    step += 1
"""


def test_a_script_that_counts_its_way_through_the_data_is_let_go_on(drive: Any) -> None:
    def body(loop: ScriptLoop) -> None:
        before = weights(loop)
        with preserved(loop.subjects):
            seen = [batches.digest(batch) for batch in islice(loop.batches(), 16)]
        assert len(set(seen)) == 8
        assert seen[:8] == seen[8:]
        assert weights(loop) == before
        again = [batches.digest(batch) for batch in islice(loop.batches(), 16)]
        assert again == seen, "the place in the data belongs to the state"

    drive(HEAD.replace("loader = ", "unused = ") + COUNTED, body)


CHANGING = """
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(10_000):
    rows = 8 + step % 7
    at = torch.arange(rows)
    optimizer.zero_grad()
    out = model(x[torch.randint(64, (rows,))])
    {use}
    nn.functional.mse_loss(out, x[:rows].sum(1, keepdim=True)).backward()
    optimizer.step()
"""


@pytest.mark.parametrize("use", ["shown = out[:, 0] * at", "assert step < 40"])
def test_what_does_not_fit_in_place_of_a_batch_is_not_the_users_fault(drive: Any, use: str) -> None:
    def body(loop: ScriptLoop) -> Any:
        batch = first(loop)
        for _ in range(100):
            loop.step(batch)

    unfit = use.startswith("shown")
    with pytest.raises(UserCodeError) as caught:
        drive(HEAD.replace("loader = ", "unused = ") + CHANGING.format(use=use), body)
    assert not unfit or isinstance(caught.value, UnfitError)


CLOSURE = """
y = x.sum(1, keepdim=True)
optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
def closure():
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    return loss
for step in range(20):
    optimizer.step(closure)
"""


def test_a_step_that_calls_the_network_itself_is_led_from_its_beginning(drive: Any) -> None:
    def body(loop: ScriptLoop) -> Any:
        batch, before = first(loop), weights(loop)
        with preserved(loop.subjects), updates_by(loop, None):
            loop.step(batch)
            still = weights(loop) == before
        with Recorder(loop) as recorder:
            losses = [loop.step(batch).loss for _ in range(3)]
        kinds = [event.kind for event in recorder.events]
        return still, losses, kinds[0], kinds.count(EventKind.STEP), weights(loop) != before

    text = HEAD.replace("nn.Dropout(0.5)", "nn.Identity()") + CLOSURE
    still, losses, begins, steps, moved = drive(text, body)
    assert still
    assert losses[0] > losses[1] > losses[2]
    assert begins is EventKind.STEP
    assert steps == 3
    assert moved


FORCED = """
class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 8), nn.Linear(8, 9)
    def forward(self, source, given):
        return self.head(self.embedding(source).mean(1, keepdim=True) + self.embedding(given))
words = torch.randint(9, (64, 6)), torch.randint(9, (64, 5))
loader = DataLoader(TensorDataset(*words), batch_size=8, shuffle=True)
model = Decoder()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for epoch in range(3):
    for source, target in loader:
        out = model(source, target[:, :-1])
        loss = nn.functional.cross_entropy(out.reshape(-1, 9), target[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def test_a_part_of_a_tensor_is_found_again_in_other_batches(drive: Any) -> None:
    """Teacher forcing: the network is given the target but for its last word."""

    def body(loop: ScriptLoop) -> Any:
        source, target = first(loop)
        other = source.flip(0), target.flip(0)
        return loop.split_batch(other), loop.called_with(other), other

    fed, called, (source, target) = drive(HEAD + FORCED, body)
    for each in (fed, called):
        assert torch.equal(each.args[0], source)
        assert torch.equal(each.args[1], target[:, :-1])


CHUNKS = """
words = torch.randint(9, (8, 23))
model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for epoch in range(20):
    for i in range(0, 22, 5):
        part = words[:, i : min(i + 5, 22)]
        target = words[:, i + 1 : i + 1 + part.shape[1]].reshape(-1)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(part).reshape(-1, 9), target).backward()
        optimizer.step()
"""


def test_a_shorter_chunk_of_a_text_has_the_form_of_the_others(drive: Any) -> None:
    def body(loop: ScriptLoop) -> Any:
        return [tuple(part.shape for part in batch) for batch in islice(loop.batches(), 6)]

    shapes = drive(HEAD.replace("loader = ", "unused = ") + CHUNKS, body)
    assert ((8, 2), (8, 2)) in shapes
    assert all(given == wanted for given, wanted in shapes)
