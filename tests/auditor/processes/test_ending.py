"""Ctrl-C and SIGTERM, as a terminal and a cluster send them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from programs import SOURCE

pytestmark = pytest.mark.slow

NAME = f"hangs{os.getpid()}"


def hangs() -> bool:
    """Whether the program has come to the place where it hangs; it can leave no file."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):  # it has ended
            if path.read_text().strip() == NAME:
                return True
    return False


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_audit_reports_what_was_answered(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    # It hangs in a step that comes long after the first answers.
    text = SOURCE.replace("def loss_fn(", "def own_loss(") + (
        "\nimport itertools, pathlib, time\nsteps = itertools.count()\n"
        "def loss_fn(output, target):\n"
        "    if next(steps) > 200:\n"
        f"        pathlib.Path('/proc/self/comm').write_text('{NAME}'); time.sleep(300)\n"
        "    return own_loss(output, target)\n"
    )
    (tmp_path / "net.py").write_text(text)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    words = [sys.executable, "-m", "nnaudit", "net.py", "-o", "report.json"]
    started = subprocess.Popen(
        words,
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    while not hangs() and started.poll() is None:
        time.sleep(0.2)
    began = time.monotonic()
    started.send_signal(number)
    assert started.wait(timeout=30) == code
    assert time.monotonic() - began < 10  # two seconds, where the machine has nothing else to do
    results = json.loads((tmp_path / "report.json").read_text())["results"]
    unanswered = [r for r in results if "interrupted" in r["message"]]
    assert 0 < len(unanswered) < len(results)
    assert not list(scratch.iterdir())
    assert not hangs()
