"""Which form a file has, read from its text."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import LOOP, SOURCE

from nnaudit.targets.definitions import form_of


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (SOURCE, "module"),
        (SOURCE + LOOP, "script"),
        (SOURCE + LOOP.replace("    main()\n", "    print('nothing')\n"), "script"),
        (SOURCE + LOOP.partition("if __name__")[0], "module"),
        (SOURCE + LOOP.replace("def main()", "def train_step()").partition("if __")[0], "module"),
        (SOURCE.replace("build_model", "assemble") + LOOP, "script"),
        (SOURCE + LOOP.replace("backward()", "backward"), "script"),
        (SOURCE + LOOP.replace("step()", "step"), "script"),
        (f"{SOURCE}{LOOP}\nimport nnaudit\n@nnaudit.target\ndef mine():\n    ...\n", "module"),
    ],
    ids=[
        "parts",
        "loop",
        "guard",
        "uncalled",
        "step",
        "no names",
        "no backward",
        "no step",
        "marked",
    ],
)
def test_a_training_loop_that_the_file_runs_is_what_is_audited(
    tmp_path: Path, text: str, form: str
) -> None:
    file = tmp_path / "net.py"
    file.write_text(text)
    assert form_of(file) == form
