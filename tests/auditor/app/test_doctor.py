"""What ``nnaudit doctor`` says of a machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import CliRunner

from nnaudit.app import doctor
from nnaudit.app.cli import main
from nnaudit.engine.job import Job, Protected, Started
from nnaudit.engine.record import Record, RefusedError
from nnaudit.report import Environment, TargetInfo
from nnaudit.settings import Settings


def loading(device: str = "cpu", why: str = "") -> Callable[[Job], Record]:
    """A child process that finds ``device``, and no protection by the kernel because of ``why``."""

    def load(job: Job) -> Record:
        record = Record()
        record.take(Protected(level="python" if why else "kernel", why=why))
        here = Environment(
            python="3.11", torch="2.9", device=device, device_name="H200", sandbox="kernel"
        )
        record.take(Started(target=TargetInfo(name="t"), environment=here, questions=()))
        return record

    return load


def refusing(job: Job) -> Record:
    raise RefusedError("your code ended the process", 4, "...\nNo module named 'torch'\n")


def found(
    monkeypatch: pytest.MonkeyPatch, load: Callable[[Job], Record]
) -> dict[str, doctor.Finding]:
    monkeypatch.setattr(doctor.supervisor, "load", load)
    return {finding.name: finding for finding in doctor.examine(Settings())}


def test_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    told = found(monkeypatch, loading())
    assert told["device"].state == "cpu"
    assert "no GPU" in told["device"].meaning
    assert told["torch"].state == "2.9"
    assert told["your files"].sound


def test_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, loading("cuda:0"))["device"].meaning == "H200"


def test_files_that_the_kernel_does_not_protect(monkeypatch: pytest.MonkeyPatch) -> None:
    told = found(monkeypatch, loading(why="no user namespaces"))["your files"]
    assert not told.sound
    assert "no user namespaces" in told.meaning


def test_what_is_not_installed_says_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version_of", lambda package: "")
    told = found(monkeypatch, loading())
    assert told["frameworks"].state == "none"
    assert told["pytest"].state == "not installed"
    assert "pytest --nnaudit" in told["pytest"].meaning


def test_another_environment_is_active(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTUAL_ENV", "/elsewhere/.venv")
    told = found(monkeypatch, loading())["environment"]
    assert "/elsewhere/.venv is active" in told.meaning
    assert not told.sound


def test_the_command_says_whether_an_audit_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.supervisor, "load", loading())
    result = CliRunner().invoke(main, ["doctor"], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.endswith("An audit can run here.\n")
    monkeypatch.setattr(doctor.supervisor, "load", refusing)
    result = CliRunner().invoke(main, ["doctor"], catch_exceptions=False, env={"COLUMNS": "40"})
    assert result.exit_code == 2
    assert "named 'torch'" in " ".join(result.stdout.split())
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_it_says_what_each_optional_package_is_for_and_where_the_docs_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "version_of", lambda name: "1.0" if name == "libcst" else "")
    told = found(monkeypatch, loading())
    assert told["libcst"].meaning.startswith("can mend")
    assert told["pytest"].state == "not installed"
    assert told["pytest"].meaning.startswith("cannot run every check as a test")
    assert told["docs"].state == "no address"
    settings = Settings(docs_url="https://docs.example/nnaudit/")
    (docs,) = (each for each in doctor.examine(settings) if each.name == "docs")
    assert docs.state == "https://docs.example/nnaudit"
