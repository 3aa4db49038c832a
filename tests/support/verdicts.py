"""Asking one check: about a measurement that the test makes up, or about a program that trains.

Most of what a check says follows from what its probes measured. :func:`verdict` hands it such a
measurement: no step is taken, a test takes milliseconds, and each case is exactly the one meant.
:func:`ask` takes the steps, :func:`ask_script` runs an unmodified script and lets it take them.
A few of these for each check show that the probes see in a real training what the made-up
measurements say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from nnaudit.checks.base import Check
from nnaudit.context import Audit, Probe
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.loop.script import run_script
from nnaudit.report import Result, Status, Text
from nnaudit.targets.target import Target
from support import programs


def verdict(
    check: type[Check],
    measured: Mapping[type[Probe[Any]], Any],
    *,
    target: Target | None = None,
    broken: Iterable[str] = (),
    **options: float,
) -> Result:
    """Return the answer of ``check`` to what its probes ``measured``.

    Args:
        check: the check to ask.
        measured: the result of each probe that it declares.
        target: where the check also looks at the model, the optimizer or the loaders; the working
            program of :func:`support.programs.target` when left out.
        broken: codes of checks that are to have failed before.
        options: thresholds of the check, as a configuration would set them.

    Raises:
        AssertionError: the check crashed, took a step, or declares a probe that is not given.
    """
    assert set(measured) == set(check.probes), f"{check.__name__} declares {check.probes}"
    result = _answer(check, target or programs.target(), measured, broken, options)
    assert not result.steps, f"{check.code} took {result.steps} steps: measure in a probe, or ask()"
    return result


def ask(
    check: type[Check],
    target: Target,
    *,
    seed: int = 0,
    broken: Iterable[str] = (),
    **options: float,
) -> Result:
    """Return the answer of ``check`` about ``target``, by real steps on the CPU.

    Raises:
        AssertionError: the check crashed.
    """
    torch.manual_seed(seed)
    return _answer(check, target, {}, broken, options, seed)


def ask_script(check: type[Check], path: Path, source: str, *, seed: int = 0) -> Result:
    """Return the answer of ``check`` about the script ``source``, which is written to ``path``.

    For what a target in module form cannot have: a second network, code between epochs, a loop of
    another kind.

    Raises:
        AssertionError: the check crashed.
    """
    path.write_text(source)
    result = run_script(path, [], "cpu", seed, lambda loop: run_check(check, Audit(loop)))
    return _sound(result)


def _answer(
    check: type[Check],
    target: Target,
    measured: Mapping[type[Probe[Any]], Any],
    broken: Iterable[str],
    options: Mapping[str, float],
    seed: int = 0,
) -> Result:
    loop = DirectLoop(target, torch.device("cpu"), seed)
    audit = Audit(loop, seed=seed, options={check.code: options}, measured=measured)
    audit.broken.update(broken)
    return _sound(run_check(check, audit))


def _sound(result: Result) -> Result:
    trace = "\n".join(part.text for part in result.evidence if isinstance(part, Text))
    assert result.status is not Status.ERROR or result.crash == "user", trace
    return result
