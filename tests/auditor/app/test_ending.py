"""Ctrl-C and SIGTERM, as a terminal and a cluster send them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from programs import SOURCE

pytestmark = pytest.mark.slow

NAME = f"hangs{os.getpid()}"


def hangs() -> bool:
    """Whether the program has come to the place where it hangs; it can leave no file."""
    return any(
        path.read_text().strip() == NAME
        for path in Path("/proc").glob("[0-9]*/comm")
        if path.exists()
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_audit_reports_what_was_answered(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    # Asked for its loader a second time, for the second check, the program hangs.
    text = SOURCE.replace("def train_loader(", "def own_loader(") + (
        "\nimport itertools, pathlib, time\ncalls = itertools.count()\n"
        "def train_loader():\n"
        "    if next(calls) > 3:\n"
        f"        pathlib.Path('/proc/self/comm').write_text('{NAME}'); time.sleep(300)\n"
        "    return own_loader()\n"
    )
    (tmp_path / "net.py").write_text(text)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    words = [sys.executable, "-m", "nnaudit", "net.py", "--output-format", "json"]
    started = subprocess.Popen(
        words,
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while not hangs() and started.poll() is None:
        time.sleep(0.2)
    began = time.monotonic()
    started.send_signal(number)
    out, err = started.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert started.returncode == code, err
    results = json.loads(out)["results"]
    unanswered = [r for r in results if "interrupted" in r["message"]]
    assert 0 < len(unanswered) < len(results)
    assert not list(scratch.iterdir())
    assert not hangs()
