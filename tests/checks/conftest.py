"""What the tests of all checks share."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.script import run_script
from nnaudit.report import Result

AskScript = Callable[[type[Check], str], Result]


@pytest.fixture
def ask_script(tmp_path: Path) -> AskScript:
    """Ask a check about a script, given as its text."""

    def run(check: type[Check], text: str) -> Result:
        path = tmp_path / "train.py"
        path.write_text(textwrap.dedent(text))
        return run_script(path, [], "cpu", 0, lambda loop: run_check(check, Audit(loop)))

    return run
