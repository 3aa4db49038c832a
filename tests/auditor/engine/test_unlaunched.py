from __future__ import annotations

from pathlib import Path

import pytest

from nnaudit.engine.job import Job
from nnaudit.engine.unlaunched import unlaunched
from nnaudit.errors import UserCodeError
from nnaudit.settings import Settings

RENDEZVOUS = (
    "Error initializing torch.distributed using env:// rendezvous: environment variable RANK "
    "expected, but not set"
)


def said(error: BaseException, processes: int | None = None) -> str:
    job = Job(path="train.py", settings=Settings(nproc_per_node=processes))
    return str(unlaunched(UserCodeError("running the script", error), job) or "")


@pytest.mark.parametrize(
    ("error", "name"),
    [(ValueError(RENDEZVOUS), "RANK"), (KeyError("LOCAL_RANK"), "LOCAL_RANK")],
)
def test_a_script_without_its_launcher_is_told_the_command(error: Exception, name: str) -> None:
    assert said(error) == (
        f"this script expects several processes (it reads {name}): run `nnaudit --nproc-per-node 2 "
        "train.py`"
    )
    assert said(error, processes=2) == ""


def test_a_variable_that_may_be_missing_is_seen_in_its_line(
    tmp_path: Path,
) -> None:
    path = tmp_path / "train.py"
    path.write_text('import os\nrank = int(os.environ.get("SLURM_PROCID"))\n')
    with pytest.raises(TypeError) as raised:
        exec(compile(path.read_text(), path, "exec"), {})
    assert "train.py:2: this script" in said(raised.value)
    assert "it reads SLURM_PROCID" in said(raised.value)


@pytest.mark.parametrize(
    "error", [ValueError("RANK"), KeyError("PATH"), RuntimeError(RENDEZVOUS), TypeError("NoneType")]
)
def test_other_errors_are_left_as_they_are(error: Exception) -> None:
    assert said(error) == ""
