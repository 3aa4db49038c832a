"""Checks are asked one at a time, on an isolated state, and none takes another down."""

from __future__ import annotations

import pytest
import torch
from programs import target
from torch import nn

from nnaudit.checks.base import Check
from nnaudit.context import Audit, Probe, UndeclaredProbeError
from nnaudit.engine.runner import run_check, run_checks
from nnaudit.errors import RepeatError, TargetError, UserCodeError
from nnaudit.loop.base import Needs
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Kind, Location, Status
from nnaudit.state.snapshot import Snapshot, Subjects

DOC = """Is it so?

Why: so.
How: so.
Fix: so.
References: none.
"""


def check(run, **parts) -> type[Check]:
    """A check whose ``run`` is the function given."""
    attributes = {"code": "TEST101", "name": "test", "kind": Kind.EXACT, "__doc__": DOC, **parts}
    return type("Made", (Check,), {**attributes, "run": run})


def audit_of(**parts) -> Audit:
    return Audit(DirectLoop(target(), torch.device("cpu"), seed=0), **parts)


def weights(audit: Audit) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in audit.loop.model.parameters()])


def train(self, audit):
    for batch in audit.loop.batches():
        audit.loop.step(batch)
    return self.passed("trained")


def train_and_raise(self, audit):
    train(self, audit)
    raise RuntimeError("oh no")


@pytest.mark.parametrize("run", [train, train_and_raise])
def test_the_state_is_put_back_after_a_check_and_after_one_that_raises(run) -> None:
    audit = audit_of()
    before, random = weights(audit), torch.get_rng_state()
    run_check(check(run), audit)
    assert torch.equal(weights(audit), before)
    assert torch.equal(torch.get_rng_state(), random)


def test_the_state_is_copied_once_for_all_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Snapshot] = []
    take = Snapshot.take

    def counted(subjects: Subjects) -> Snapshot:
        taken.append(take(subjects))
        return taken[-1]

    monkeypatch.setattr(Snapshot, "take", counted)
    audit = audit_of()
    before = weights(audit)
    run_check(check(train), audit)
    first = len(taken)
    for _ in range(3):
        run_check(check(train), audit)
        assert torch.equal(weights(audit), before)
    assert len(taken) == first


def test_steps_and_seconds_are_charged() -> None:
    result = run_check(check(train), audit_of())
    assert result.steps == 8
    assert result.seconds > 0


def test_our_crash_is_told_from_the_users() -> None:
    result = run_check(check(train_and_raise), audit_of())
    assert (result.status, result.crash) == (Status.ERROR, "nnaudit")
    assert "oh no" in result.message

    def users(self, audit):
        raise UserCodeError("reading a batch", OSError("disk"))

    result = run_check(check(users), audit_of())
    assert (result.status, result.crash) == (Status.ERROR, "user")
    assert "OSError: disk while reading a batch" in result.message


def test_a_crash_within_a_librarys_layer_names_the_layer_and_what_made_the_model() -> None:
    def users(self, audit):
        audit.loop.forward(next(iter(audit.loop.batches())), train=True)

    def broken():
        return nn.Sequential(nn.Linear(8, 4), nn.Sequential(nn.ReLU(), nn.Linear(5, 2)))

    made = Location(file="train.py", line=7)
    handed = target(model=broken, locations={"model": made})
    audit = Audit(DirectLoop(handed, torch.device("cpu"), seed=0))
    result = run_check(check(users), audit)
    assert (result.module, result.location) == ("1.1", made)
    assert "shapes cannot be multiplied" in result.message


def test_what_the_loop_cannot_offer_skips_with_the_reason() -> None:
    result = run_check(check(train, needs=(Needs.VAL_LOADER,)), audit_of())
    assert result.status is Status.SKIP
    assert "val_loader" in result.message


def test_a_spent_budget_makes_the_rest_inconclusive() -> None:
    result = run_check(check(train), audit_of(budget=1e-9))
    assert result.status is Status.INCONCLUSIVE
    assert "budget" in result.message


def test_a_budget_that_ends_within_a_check_ends_it() -> None:
    def endless(self, audit):
        while True:
            train(self, audit)

    result = run_check(check(endless), audit_of(budget=0.2))
    assert result.status is Status.INCONCLUSIVE
    assert "budget" in result.message


def test_an_unusable_target_ends_the_audit() -> None:
    def unusable(self, audit):
        raise TargetError("no")

    with pytest.raises(TargetError):
        run_check(check(unusable), audit_of())


def test_checks_that_train_come_last() -> None:
    order = []
    first = check(train, code="TEST101", trains=True)
    second = check(train, code="TEST102")
    list(run_checks([first, second], audit_of(), on_start=lambda c: order.append(c.code)))
    assert order == ["TEST102", "TEST101"]


class Counted(Probe[int]):
    taken = 0

    def measure(self, audit: Audit) -> int:
        type(self).taken += 1
        audit.loop.step(next(audit.loop.batches()))
        return self.taken


class Failing(Probe[int]):
    taken = 0

    def measure(self, audit: Audit) -> int:
        type(self).taken += 1
        raise UserCodeError("measuring", OSError("disk"))


class Nested(Probe[int]):
    probes = (Counted,)

    def measure(self, audit: Audit) -> int:
        return 10 * audit.probe(Counted)


def ask(probe):
    def run(self, audit):
        return self.passed(f"{audit.probe(probe)}")

    return run


def test_a_probe_is_taken_once_and_its_traces_removed() -> None:
    Counted.taken = 0
    audit = audit_of()
    before = weights(audit)
    for probe, expected in ((Counted, "1"), (Nested, "10"), (Counted, "1")):
        result = run_check(check(ask(probe), probes=(probe,)), audit)
        assert result.message == expected
    assert torch.equal(weights(audit), before)


def test_a_probe_that_fails_is_not_tried_again() -> None:
    Failing.taken = 0
    audit = audit_of()
    for _ in range(2):
        assert run_check(check(ask(Failing), probes=(Failing,)), audit).crash == "user"
    assert Failing.taken == 1


def test_an_undeclared_probe_is_refused() -> None:
    result = run_check(check(ask(Counted)), audit_of())
    assert result.status is Status.ERROR
    assert UndeclaredProbeError.__name__ in result.message


def test_what_killed_the_process_is_not_tried_again() -> None:
    Counted.taken = 0
    audit = audit_of(known_fatal={"Counted": "Your code hung"})
    result = run_check(check(ask(Counted), probes=(Counted,)), audit)
    assert (result.status, result.crash) == (Status.ERROR, "user")
    assert Counted.taken == 0


def test_thresholds_come_from_the_configuration() -> None:
    def shown(self, audit):
        return self.passed(f"{self.option(audit, 'limit'):g}")

    made = check(shown, options={"limit": 3.0})
    assert run_check(made, audit_of()).message == "3"
    assert run_check(made, audit_of(options={"TEST101": {"limit": 5.0}})).message == "5"


def test_what_the_first_steps_answer_is_asked_first_and_what_trains_last() -> None:
    class Short(Probe[int]):
        steps = 5

        def measure(self, audit: Audit) -> int:
            return 1

    class Long(Short):
        steps = 20

    asked: list[str] = []
    kinds = {
        "TEST101": {"probes": (Long,), "trains": True},
        "TEST102": {"probes": ()},
        "TEST103": {"probes": (Short, Long)},
        "TEST104": {"probes": (Short,)},
    }
    battery = [check(lambda self, audit: self.passed("so"), code=c, **k) for c, k in kinds.items()]
    list(run_checks(battery, audit_of(), on_start=lambda each: asked.append(each.code)))
    assert asked == ["TEST104", "TEST102", "TEST103", "TEST101"]


def test_a_program_that_runs_once_in_a_process_is_not_judged_by_what_needs_it_twice() -> None:
    def again(self: Check, audit: Audit) -> None:
        raise RepeatError("running train.py again", ValueError("'name' is taken"))

    answer = run_check(check(again), audit_of())
    assert answer.status is Status.INCONCLUSIVE
    assert "a second time in the same process: ValueError: 'name' is taken" in answer.message
