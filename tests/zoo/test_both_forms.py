"""Every program of the zoo gets the same verdicts as an unmodified script as it does in parts.

What the module form must answer is asserted by ``test_zoo``; here the script form is held to the
same lines of the docstrings, with the exceptions that a ``zoo script:`` line states. To keep CI
short, all programs are asked the checks of the headline battery that do not train, with those about
the gradients, the step and the modes that are cheap; a few of each kind are asked those that train.
Everything, with all checks, and that both forms agree, is

    python tests/zoo/run.py --form both
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_SPEC = importlib.util.spec_from_file_location("zoo_run", Path(__file__).with_name("run.py"))
assert _SPEC is not None and _SPEC.loader is not None
run = importlib.util.module_from_spec(_SPEC)
sys.modules["zoo_run"] = run
_SPEC.loader.exec_module(run)

pytestmark = pytest.mark.slow

TRAINING = ("FIT101", "FIT105", "FIT106")
WIRING = (
    *(code for code in run.HEADLINE if code not in TRAINING),
    "GRAD101", "GRAD103", "GRAD104", "GRAD107", "GRAD108", "LOSS103", "LOSS104", "MODE102",
    "MODE103", "STEP101", "STEP102", "STEP103", "STEP104", "STEP105", "STEP106", "STEP107",
)  # fmt: skip
"""The headline battery without the checks that train, and what else costs little."""

TRAINED = (
    "healthy/digits_cnn_batchnorm", "healthy/diabetes_huber", "near/autoencoder_narrow_code",
    "faults/fit101_learning_rate_typo", "faults/fit106_one_unit_bottleneck",
)  # fmt: skip
"""Networks of several kinds that pass, that nearly fail, and that fail."""


@pytest.fixture(scope="session")
def nursery() -> Iterator[Any]:
    ready = run.Nursery()
    yield ready
    ready.close()


def _name(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def _agrees(nursery: Any, path: Path, checks: tuple[str, ...]) -> None:
    wanted = run.expected(path, "script")
    if wanted.needs and not Path(wanted.needs).exists():
        pytest.skip(f"needs {wanted.needs}")
    found = run.problems(nursery.audit(path, run.Wish("script", checks)), wanted)
    asked = not wanted.faulty or wanted.codes[0] in checks
    assert [line for line in found if asked or not line.startswith("missed:")] == []


@pytest.mark.parametrize("path", run.programs(), ids=_name)
def test_script_form_answers_alike(path: Path, nursery: Any) -> None:
    _agrees(nursery, path, WIRING)


@pytest.mark.parametrize("name", TRAINED)
def test_script_form_trains_alike(name: str, nursery: Any) -> None:
    (path,) = run.programs(name)
    _agrees(nursery, path, TRAINING)


def test_a_difference_between_the_forms_is_told() -> None:
    def answering(**statuses: str) -> Any:
        results = [{"code": code, "status": status} for code, status in statuses.items()]
        return run.Outcome("faults/some", results)

    module = answering(DATA101="fail", LOSS101="pass", SEED102="pass", INIT101="warn")
    script = answering(DATA101="pass", LOSS101="skip", SEED102="note", INIT101="warn")
    assert run.differences(module, script) == [
        "forms differ: DATA101: fail in module form, pass in script form"
    ]
