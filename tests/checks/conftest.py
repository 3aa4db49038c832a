"""What the tests of all checks share."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from nnaudit.checks.base import Check
from nnaudit.report import Result
from support import verdicts

AskScript = Callable[[type[Check], str], Result]


@pytest.fixture
def ask_script(tmp_path: Path) -> AskScript:
    """Ask a check about a script, given as its text."""

    def run(check: type[Check], text: str) -> Result:
        return verdicts.ask_script(check, tmp_path / "train.py", textwrap.dedent(text))

    return run
