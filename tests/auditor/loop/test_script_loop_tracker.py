"""Scripts that train more than once: which loop is audited, and that its author is told."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnaudit.errors import TargetError, UserCodeError
from nnaudit.loop.script import ScriptLoop, run_script, scouting
from nnaudit.loop.script.loop_tracker import CallSite, LoopTracker

HEAD = """
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
torch.manual_seed(0)
x = torch.randn(64, 4)
y = (x[:, 0] > 0).long()
loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
encoder = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
"""

PRETRAINING = """
def pretrain(auto):
    adam = torch.optim.Adam(auto.parameters())
    plan = torch.optim.lr_scheduler.StepLR(adam, 1)
    for epoch in range(3):
        for a, _ in loader:
            adam.zero_grad()
            nn.functional.mse_loss(auto(a), a).backward()
            adam.step()
        plan.step()

pretrain(nn.Sequential(encoder, nn.Linear(6, 4)))
"""

TRAINING = """
model = nn.Sequential(encoder, nn.Linear(6, 2))
sgd = torch.optim.SGD(model.parameters(), lr=0.05)
for epoch in range(5):
    for a, b in loader:
        sgd.zero_grad()
        nn.functional.cross_entropy(model(a), b).backward()
        sgd.step()
"""

FOLDS = """
for fold in range(3):
    kept = [i for i in range(64) if i % 3 != fold]
    train = DataLoader(Subset(loader.dataset, kept), batch_size=8, shuffle=True)
    model = nn.Linear(4, 2 + fold)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    for epoch in range(2):
        for a, b in train:
            sgd.zero_grad()
            nn.functional.cross_entropy(model(a), b).backward()
            sgd.step()
"""

DISTILLATION = """
def train(network, optimizer, teacher=None):
    for a, b in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(a), b)
        if teacher is not None:
            with torch.no_grad():
                soft = teacher(a).softmax(1)
            loss = nn.functional.cross_entropy(network(a), soft)
        loss.backward()
        optimizer.step()

teacher, student = nn.Linear(4, 2), nn.Linear(4, 2, bias=False)
first = torch.optim.SGD(teacher.parameters(), lr=0.1)
second = torch.optim.SGD(student.parameters(), lr=0.2)
for epoch in range(2):
    train(teacher, first)
for epoch in range(5):
    train(student, second, teacher)
"""

PROBE = """
head = nn.Linear(6, 2)
probing = torch.optim.SGD(head.parameters(), lr=0.05)
for epoch in range(2):
    for a, b in loader:
        with torch.no_grad():
            code = encoder(a)
        probing.zero_grad()
        nn.functional.cross_entropy(head(code), b).backward()
        probing.step()
"""

BIGGER = """
bigger = nn.Linear(4, 2)
others = torch.optim.SGD(bigger.parameters(), lr=0.05)
for epoch in range(2):
    for a, b in loader:
        others.zero_grad()
        nn.functional.cross_entropy(bigger(a), b).backward()
        others.step()
"""

BY_HAND = """
for i in range(20):
    rows = torch.randint(64, (8,))
    fast.zero_grad()
    nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
    fast.step()
"""

DRAWN = f"""
model = nn.Linear(4, 2)
fast = torch.optim.SGD(model.parameters(), lr=0.1)
{BY_HAND}
model = nn.Linear(4, 3)
fast = torch.optim.SGD(model.parameters(), lr=0.01)
{BY_HAND}
"""


ENSEMBLE = """
members = [nn.Linear(4, 2) for _ in range(3)]
optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in members]
loaders = [DataLoader(loader.dataset, batch_size=8, shuffle=True) for _ in members]
trained = [0, 0, 0]
for epoch in range(4):
    for k, (model, sgd, train) in enumerate(zip(members, optimizers, loaders)):
        for a, b in train:
            sgd.zero_grad()
            nn.functional.cross_entropy(model(a), b).backward()
            sgd.step()
"""

COMPARISON = """
for width in (8, 16, 32):
    model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    for epoch in range(2):
        for a, b in loader:
            sgd.zero_grad()
            nn.functional.cross_entropy(model(a), b).backward()
            sgd.step()
"""

SEARCHED = """
model = nn.Linear(4, 2)
sgd = torch.optim.SGD(model.parameters(), lr=0.05)
for epoch in range(5):
    for a, b in loader:
        shift = torch.zeros_like(a, requires_grad=True)
        search = torch.optim.Adam([shift], lr=0.01)
        for _ in range(40):
            search.zero_grad()
            (-nn.functional.cross_entropy(model(a + shift), b)).backward()
            search.step()
        sgd.zero_grad()
        nn.functional.cross_entropy(model(a + shift.detach()), b).backward()
        sgd.step()
"""


ADVERSARIAL = """
maker, critic = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
two = [torch.optim.SGD(each.parameters(), lr=0.05) for each in (maker, critic)]
for epoch in range(5):
    for i, (a, _) in enumerate(DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)):
        two[1].zero_grad()
        (critic(maker(torch.randn_like(a)).detach()) - critic(a)).mean().backward()
        two[1].step()
        if i % 3 == 2:
            two[0].zero_grad()
            (-critic(maker(torch.randn_like(a)))).mean().backward()
            two[0].step()
"""

COPIES = """
import copy
model = nn.Linear(4, 2)
for a, b in loader:
    fast = copy.deepcopy(model)
    inner = torch.optim.SGD(fast.parameters(), lr=0.1)
    for _ in range(3):
        inner.zero_grad()
        nn.functional.cross_entropy(fast(a), b).backward()
        inner.step()
    with torch.no_grad():
        for p, q in zip(model.parameters(), fast.parameters()):
            p.lerp_(q, 0.1)
"""


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a script's text in a folder of its own, with ``body`` on its N-th loop."""
    monkeypatch.chdir(tmp_path)

    def run(text: str, loop: int | None, body: Callable[[ScriptLoop], Any]) -> Any:
        path = tmp_path / "train.py"
        path.write_text(textwrap.dedent(text))
        return run_script(path, [], "cpu", 0, body, loop=loop)

    return run


def parts(loop: ScriptLoop) -> dict[str, str]:
    return {part.name: part.description for part in loop.info().parts}


def line_of(text: str, script: str) -> int:
    return next(i for i, line in enumerate(script.splitlines(), 1) if text in line)


def steps(loop: ScriptLoop) -> None:
    """The loop is led like any other."""
    batch = next(iter(loop.batches()))
    losses = [loop.step(batch).loss for _ in range(12)]
    assert losses[-1] < losses[0]


def replicated(loop: ScriptLoop) -> None:
    """Another run comes to the same loop."""
    steps(loop)
    with loop.relaunched(1) as other:
        assert parts(other)["model"] == parts(loop)["model"]  # type: ignore[arg-type]
        assert other.step(next(iter(other.batches()))).loss > 0


@pytest.mark.parametrize("used", [False, True])
def test_a_function_that_nothing_speaks_of_is_no_other_loop(used: bool, drive: Any) -> None:
    function = PRETRAINING.partition("\npretrain(")[0]
    more = "\nchosen = pretrain if x is None else None\n" if used else "\n"

    def body(loop: ScriptLoop) -> None:
        assert ("other loops" in parts(loop)) is used

    drive(HEAD + function + more + TRAINING, None, body)


def test_the_first_of_two_loops_is_audited_and_the_other_is_named(drive: Any) -> None:
    script = HEAD + PRETRAINING + TRAINING

    def body(loop: ScriptLoop) -> None:
        said = parts(loop)
        assert said["loop"] == "the first training loop that the script comes to"
        there = line_of("cross_entropy", script)
        assert said["other loops"] == (
            f"backward() is called at line {there} too. --loop 2 audits the next that the script "
            "runs"
        )
        assert loop.info().other_loops == said["other loops"]

    drive(script, None, body)


def test_the_second_loop_can_be_chosen(drive: Any) -> None:
    script = HEAD + PRETRAINING + TRAINING

    def body(loop: ScriptLoop) -> None:
        said = parts(loop)
        assert said["loop"] == "training loop 2; 1 loop before it: not audited"
        assert "other loops" not in said, "the first loop is behind it, and no other follows"
        assert said["loss"].startswith("cross_entropy")
        assert said["optimizer"] == "SGD, lr 0.05"
        assert not loop.schedulers, "that is the pre-training's"
        line = loop.info().parts[[*said].index("loop")].location
        assert line is not None
        assert line.line == line_of("for a, b in loader", script)
        replicated(loop)

    drive(script, 2, body)


def test_what_the_first_loop_learnt_is_there_in_the_second(drive: Any) -> None:
    text = HEAD + "before = encoder[0].weight.clone()\n" + PRETRAINING
    text += "moved = bool((encoder[0].weight != before).any())\nassert moved\n" + TRAINING
    drive(text, 2, steps)


def test_a_loop_that_there_is_not_is_said_to_be_missing(drive: Any) -> None:
    with pytest.raises(TargetError, match=r"has only 2 training loops: --loop 3 does not exist"):
        drive(HEAD + PRETRAINING + TRAINING, 3, steps)


def test_a_crash_in_a_loop_that_is_passed_by_is_the_users(drive: Any) -> None:
    text = HEAD + PRETRAINING.replace("plan.step()", "plan.stop()") + TRAINING
    with pytest.raises(UserCodeError, match="before the training loop to audit"):
        drive(text, 2, steps)


@pytest.mark.parametrize("fold", [None, 1, 3])
def test_folds_are_loops_by_their_optimizers(drive: Any, fold: int | None) -> None:
    def body(loop: ScriptLoop) -> None:
        assert loop.model.out_features == 1 + (fold or 1)
        assert parts(loop)["other loops"].startswith(
            "every round of the loop makes an optimizer of its own: one is audited. "
            f"--loop {1 + (fold or 1)} "
        )
        steps(loop)

    drive(HEAD + FOLDS, fold, body)


@pytest.mark.parametrize("text", [ENSEMBLE, COMPARISON, FOLDS])
def test_the_audited_training_goes_on_when_the_script_trains_another(drive: Any, text: str) -> None:
    def body(loop: ScriptLoop) -> None:
        batch = next(iter(loop.batches()))
        for _ in range(3):
            assert loop.next_epoch(batch) is not None
            loop.step(batch)
        losses = [loop.step(batch).loss for _ in range(60)]
        assert losses[-1] < losses[0]

    drive(HEAD + text, None, body)


def test_optimizers_within_the_step_are_no_other_training(drive: Any) -> None:
    def body(loop: ScriptLoop) -> None:
        batch = next(iter(loop.batches()))
        losses = [loop.step(batch).loss for _ in range(8)]
        assert losses == sorted(losses, reverse=True)
        assert loop.run.reruns <= 1

    drive(HEAD + SEARCHED, None, body)


def test_two_networks_against_each_other_are_one_training(drive: Any) -> None:
    def body(loop: ScriptLoop) -> None:
        batch = next(iter(loop.batches()))
        for _ in range(2):
            assert loop.next_epoch(batch) is not None
            for _ in range(6):
                loop.step(batch)
        assert not loop.run.loop.others

    drive(HEAD + ADVERSARIAL, None, body)


def test_copies_that_learn_a_task_each_are_led(drive: Any) -> None:
    def body(loop: ScriptLoop) -> None:
        batch = next(iter(loop.batches()))
        assert all(loop.step(batch).loss > 0 for _ in range(20))
        assert loop.run.reruns <= 1

    drive(HEAD + COPIES, None, body)


def is_students(loop: ScriptLoop) -> None:
    """The second loop of ``DISTILLATION`` is audited."""
    assert parts(loop)["optimizer"] == "SGD, lr 0.2"
    assert loop.model.bias is None
    assert "other loops" not in parts(loop)
    replicated(loop)


def test_the_students_training_is_audited_not_its_teachers(drive: Any) -> None:
    def body(loop: ScriptLoop) -> None:
        assert parts(loop)["loop"] == (
            "training loop 2, whose network learns from one that was trained before; 1 loop before "
            "it: not audited"
        )
        is_students(loop)

    drive(HEAD + DISTILLATION, None, body)
    drive(HEAD + DISTILLATION, 2, is_students)


def test_a_function_may_train_in_two_loops(drive: Any) -> None:
    script = HEAD + DISTILLATION

    def body(loop: ScriptLoop) -> None:
        other = line_of("train(student", script)
        assert parts(loop)["other loops"].startswith(f"train() is called at line {other} too. ")

    drive(script, 1, body)


@pytest.mark.parametrize("later", [PROBE, BIGGER], ids=["probe", "another"])
def test_what_learns_from_no_teacher_is_not_chosen(drive: Any, later: str) -> None:
    """A head on an encoder's outputs judges the encoder; another network is no student."""

    def body(loop: ScriptLoop) -> None:
        assert loop.run.session.executions == 2, "the script was followed to its end"
        assert parts(loop)["loop"] == "the first training loop that the script comes to"
        steps(loop)

    drive(HEAD + PRETRAINING + later, None, body)


def test_a_script_is_not_followed_for_long(drive: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scouting, "LONGEST", 0.0)

    def body(loop: ScriptLoop) -> None:
        assert parts(loop)["loop"] == "the first training loop that the script comes to"
        assert "other loops" in parts(loop)

    drive(HEAD + DISTILLATION, None, body)


def test_the_head_is_warmed_up_before_all_is_trained(drive: Any) -> None:
    """The same function and optimizer twice: told apart by where it is called from."""
    warm_up = TRAINING.replace("range(5)", "range(1)").replace(
        "model = ", "encoder.train()\nmodel = "
    )
    again = TRAINING[TRAINING.index("for epoch") :]
    script = HEAD + warm_up + "encoder.requires_grad_(True)\n" + again
    drive(script, 2, lambda loop: (steps(loop), parts(loop)["loop"].startswith("training loop 2")))


@pytest.mark.parametrize(("number", "classes"), [(1, 2), (2, 3)])
def test_loops_that_draw_their_batches_count(drive: Any, number: int, classes: int) -> None:
    def body(loop: ScriptLoop) -> None:
        assert loop.run.without_loader
        assert loop.model.out_features == classes
        replicated(loop)

    drive(HEAD + DRAWN, number, body)


def test_a_loop_without_a_loader_is_audited_where_it_is_chosen(drive: Any) -> None:
    """Else the one with a loader is waited for, and said to be the second."""
    script = HEAD + DRAWN[: DRAWN.index("model = nn.Linear(4, 3)")] + TRAINING

    def chosen(loop: ScriptLoop) -> None:
        assert loop.run.without_loader
        assert "too. --loop 2 audits" in parts(loop)["other loops"]

    drive(script, 1, chosen)

    def found(loop: ScriptLoop) -> None:
        assert not loop.run.without_loader
        assert parts(loop)["loop"] == "training loop 2; 1 loop before it: not audited"

    drive(script, None, found)


BRANCHES = """
from torch.amp import GradScaler
model = nn.Sequential(encoder, nn.Linear(6, 2))
sgd = torch.optim.SGD(model.parameters(), lr=0.05)
half = len(x) > 1000

def update(loss):
    if half:
        GradScaler("cpu").scale(loss).backward()
    else:
        loss.backward()
    sgd.step()

def one_epoch():
    for a, b in loader:
        sgd.zero_grad()
        if len(a) > 100:
            nn.functional.cross_entropy(model(a), b).backward()
            sgd.step()
        else:
            update(nn.functional.cross_entropy(model(a), b))

def main():
    for epoch in range(5):
        one_epoch()
        for a, b in loader:
            sgd.zero_grad()
            nn.functional.cross_entropy(model(-a), 1 - b).backward()
            sgd.step()

main()
"""


@pytest.mark.parametrize("text", [TRAINING, BRANCHES])
def test_branches_and_parts_of_one_loop_are_no_others(drive: Any, text: str) -> None:
    def body(loop: ScriptLoop) -> None:
        assert "other loops" not in parts(loop)
        assert parts(loop)["loop"].startswith("the first")

    drive(HEAD + text, None, body)


FITTED = """
class Scaler:
    def fit(self, x):
        return self

class Trainer:
    def fit(self, model):
        sgd = torch.optim.SGD(model.parameters(), lr=0.05)
        for epoch in range(5):
            for a, b in loader:
                sgd.zero_grad()
                nn.functional.cross_entropy(model(a), b).backward()
                sgd.step()

scaler = Scaler().fit(x)
model = nn.Sequential(encoder, nn.Linear(6, 2))
Trainer().fit(model)
"""


@pytest.mark.parametrize(("more", "others"), [("", False), ("Trainer().fit(model)\n", True)])
def test_the_fit_of_a_scaler_is_no_training_loop(drive: Any, more: str, others: bool) -> None:
    assert ("other loops" in drive(HEAD + FITTED + more, None, parts)) is others


def test_what_counts_as_another_loop() -> None:
    here, there = CallSite((("a.py", 3),), loops=True), CallSite((("a.py", 9),), loops=True)
    phases = LoopTracker()
    assert phases.current == 1
    assert not phases.enter(here, 1)
    assert not phases.enter(there, 1), "nothing has been trained: the data was looked at, say"
    phases.step(2)
    assert not phases.enter(there, 2), "an optimizer may be made late, after a lazy network's call"
    assert (phases.number, phases.current) == (1, 1)
    assert phases.enter(there, 3), "an optimizer was made since"
    assert (phases.number, phases.current) == (1, 2), "it counts when it has taken a step"
    assert not phases.enter(here, 3)
    phases.step(3)
    phases.step(3)
    assert phases.number == 2
    assert phases.enter(there, 3)
