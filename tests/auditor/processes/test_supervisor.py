"""The parent's side, with children that behave badly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from programs import SOURCE

from nnaudit.engine.job import Answered, Asking, Job, Question, Started
from nnaudit.engine.record import Record, RefusedError
from nnaudit.processes import supervisor
from nnaudit.report import Environment, Kind, Result, Status, TargetInfo
from nnaudit.settings import Settings

pytestmark = pytest.mark.slow


def job(folder: Path, text: str, **settings: object) -> Job:
    path = folder / "net.py"
    path.write_text(text)
    return Job(path=str(path), settings=Settings(**settings))  # type: ignore[arg-type]


@pytest.mark.usefixtures("warm_children")
def test_a_probe_that_kills_the_process_is_charged_once(tmp_path: Path) -> None:
    text = SOURCE.replace(
        "    x = torch.randn(256, 8)\n", "    x = torch.randn(256, 8)\n    return Deadly()\n"
    )
    text += (
        "\nimport os\nclass Deadly:\n    drawn = 0\n"
        "    def __iter__(self):\n        for _ in range(40):\n            Deadly.drawn += 1\n"
        "            if Deadly.drawn > 12:\n                os._exit(5)\n"
        "            yield torch.randn(8, 8), torch.arange(8) % 3\n"
    )
    report, record = supervisor.audit(job(tmp_path, text, select="DATA101,DATA104,GRAD102,LOSS101"))
    assert {r.code for r in report.results} == {"DATA101", "DATA104", "GRAD102", "LOSS101"}
    dead = report.with_status(Status.ERROR)
    assert all("exit code 5" in r.message and r.crash == "user" for r in dead)
    assert report.result("GRAD102").status is Status.PASS
    assert record.finished


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(f"import time\n{SOURCE}\ntime.sleep(60)\n")
    parent = subprocess.Popen([sys.executable, "-m", "nnaudit.app.cli", str(path)], cwd=tmp_path)
    children: list[str] = []
    for _ in range(100):
        time.sleep(0.1)
        listing = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        threads = Path(f"/proc/{parent.pid}/task").iterdir() if listing.exists() else []
        children = [pid for t in threads for pid in (t / "children").read_text().split()]
        if children:
            break
    assert children
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(100):
        time.sleep(0.1)
        if not any(_alive(int(pid)) for pid in children):
            return
    pytest.fail("the child outlived its parent")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


@pytest.mark.usefixtures("warm_children")
def test_events_come_while_the_audit_runs(tmp_path: Path) -> None:
    seen: list[str] = []
    supervisor.audit(
        job(tmp_path, SOURCE, select="DATA101"),
        on_event=lambda event, record: seen.append(event.event),
    )
    assert seen[:2] == ["protected", "started"]
    assert seen.index("asking") < seen.index("answered") < seen.index("finished")
    assert Asking(code="X").event == "asking"


@pytest.mark.usefixtures("warm_children")
def test_inspection_asks_nothing(tmp_path: Path) -> None:
    started = supervisor.inspect(job(tmp_path, SOURCE))
    assert started.questions == ()
    assert {part.name for part in started.target.parts} >= {"model", "train_loader"}


@pytest.mark.usefixtures("warm_children")
def test_a_child_that_writes_to_our_pipe_is_refused(tmp_path: Path) -> None:
    text = f"import os, sys\nos.write(int(sys.argv[1]), b'nonsense\\n')\n{SOURCE}"
    with pytest.raises(RefusedError, match="pipe"):
        supervisor.audit(job(tmp_path, text))


def test_what_is_known_so_far_says_of_the_rest_that_it_is_open(tmp_path: Path) -> None:
    record = Record()
    details = {"name": "x", "family": "DATA", "kind": Kind.EXACT}
    questions = tuple(
        Question(code=c, question="Is it?", **details) for c in ("DATA101", "DATA102")
    )
    target = TargetInfo(name="net")
    record.take(Started(target=target, environment=Environment(), questions=questions))
    answer = Result(code="DATA102", status=Status.PASS, message="so", seconds=2.0, **details)
    record.take(Answered(result=answer))
    report = supervisor.so_far(job(tmp_path, SOURCE), record)
    assert [r.status for r in report.results] == [Status.INCONCLUSIVE, Status.PASS]
    assert "had not come to it" in report.results[0].message
    assert report.totals.seconds == 2.0
    assert list(record.results) == ["DATA102"], "the audit goes on"
