"""What to say of a script that ended, and of which no training could be taken hold of."""

from __future__ import annotations

from torch.optim import Optimizer

from nnaudit.errors import (
    NeverStepsError,
    NnauditError,
    RepeatError,
    TargetError,
    UserCodeError,
)
from nnaudit.loop.script.discovery import Discovery
from nnaudit.targets.source import source_of
from nnaudit.wording import count


def untrained(discovery: Discovery, error: BaseException | None) -> Exception:
    """Return the error to raise for a script that ended, with ``error`` if it did not mean to."""
    name = discovery.session.path.name
    if isinstance(error, NnauditError):
        return error
    if error is not None and discovery.session.executions > 1:
        return RepeatError(f"running {name} again", error)
    if isinstance(error, SystemExit):
        return _exited(name, error, discovery.session.taps.usage)
    if error is not None:
        reads = ", which reads standard input: pass arguments instead"
        ahead = "its second batch" if discovery.steps else "its first optimizer step"
        ahead = "the training loop to audit" if discovery.passing_by else ahead
        when = reads if isinstance(error, EOFError) else f", before {ahead}"
        return UserCodeError(f"running {name}{when}", error)
    idle = discovery.backwards and not discovery.steps and not discovery.has_moved
    if idle and (made := discovery.run.registers.of["optimizer"].alive()):
        return NeverStepsError(f"{name} {_never_steps(discovery, made[0])}")
    return TargetError(f"{name} {_why(discovery)}")


def _never_steps(discovery: Discovery, optimizer: Optimizer) -> str:
    place = discovery.run.registers.place(optimizer)
    where = f" of line {place.line}" if place is not None else ""
    uncalled = source_of(discovery.session.path).uncalled("step")
    hint = f": line {uncalled[0]} names step without calling it" if uncalled else ""
    return (
        f"called backward() {count(discovery.backwards, 'time')}, and its optimizer{where} took "
        f"no step{hint}"
    )


def _exited(name: str, error: SystemExit, usage: str) -> TargetError:
    said = f" ({usage.splitlines()[-1]})" if usage else ""
    code = error.code
    ended_so = f"exit code {code}" if isinstance(code, int) else f"the message {code!r}"
    failure = TargetError(
        f"{name} ended with {ended_so:.200} before it trained{said}: "
        "pass its own arguments after --"
    )
    if usage:
        failure.add_note(usage)
    return failure


def _why(discovery: Discovery) -> str:
    wanted, loops, steps = discovery.session.loop, discovery.phases.number, discovery.steps
    if wanted is not None and loops < wanted:
        return f"has only {count(loops, 'training loop')}: --loop {wanted} does not exist"
    if steps > 1 and not discovery.calls_networks:
        return (
            f"took {steps} optimizer steps without calling an nn.Module, and nnaudit audits "
            "networks only"
        )
    if steps:
        return (
            f"ended after {count(steps, 'optimizer step')}: nnaudit takes control of a loop when "
            "it asks for its next batch, so let it train on two batches or more"
        )
    if discovery.backwards:
        return (
            "ended without an optimizer step, although it called backward() "
            f"{count(discovery.backwards, 'time')}: nnaudit needs a torch optimizer that updates "
            "the weights"
        )
    return (
        "ended without an optimizer step: pass the arguments that make it train after --. A run "
        "that is resumed where it had ended does not train, and training in child processes is "
        "not seen"
    )
