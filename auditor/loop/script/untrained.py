"""What to say of a script that ended, and of which no training could be taken hold of."""

from __future__ import annotations

from nnaudit.errors import NnauditError, TargetError, UserCodeError
from nnaudit.loop.script.discovery import Discovery
from nnaudit.wording import count


def untrained(discovery: Discovery, error: BaseException | None) -> Exception:
    """Return the error to raise for a script that ended, with ``error`` if it did not mean to."""
    name = discovery.session.path.name
    if isinstance(error, SystemExit):
        return _exited(name, error, discovery.session.taps.usage)
    if isinstance(error, NnauditError):
        return error
    if error is not None:
        reads = ", which reads input that an audit has not: pass arguments"
        ahead = "its second batch" if discovery.steps else "its first optimizer step"
        ahead = "the training loop to audit" if discovery.passing_by else ahead
        when = reads if isinstance(error, EOFError) else f", before {ahead}"
        return UserCodeError(f"running {name}{when}", error)
    return TargetError(f"{name} {_why(discovery)}")


def _exited(name: str, error: SystemExit, usage: str) -> TargetError:
    said = f" ({usage.splitlines()[-1]})" if usage else ""
    code = error.code
    ended_so = f"exit code {code}" if isinstance(code, int) else f"the words {code!r}"
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
        return f"comes to {count(loops, 'training loop')}: --loop {wanted} names none"
    if steps > 1 and not discovery.calls_networks:
        return (
            f"took {steps} optimizer steps without calling a network: nnaudit audits "
            "what an nn.Module holds and computes"
        )
    if steps:
        return (
            f"ended after {steps} optimizer step(s): nnaudit takes hold of a loop when "
            "it asks for the next batch, so let it train on two batches or more"
        )
    if discovery.backwards:
        return (
            f"ended without an optimizer step, though it called backward() {discovery.backwards} "
            "time(s): nnaudit takes hold of training by the step of a torch optimizer, so let "
            "one update the weights"
        )
    return (
        "ended without an optimizer step: pass the arguments that make it train after --, and "
        "mind that training in child processes is not seen"
    )
