"""What ``pytest --nnaudit`` collects and runs, and what the fixture does. Must not import torch."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nnaudit import config as settings_of
from nnaudit.app.pytest_session import folder_of
from nnaudit.app.pytest_warning import NnauditWarning
from nnaudit.display import AuditReport
from nnaudit.engine.job import PLUGIN, Job, Question
from nnaudit.engine.record import RefusedError
from nnaudit.errors import UsageError
from nnaudit.processes import supervisor
from nnaudit.report import Model, Report, Result, Status
from nnaudit.reports.text import one_line
from nnaudit.settings import Settings


class Outcome(Model):
    """An audit as the processes of a session hand it to each other.

    Attributes:
        report: what came of it; None where it could not be done.
        refusal, detail: why not, in a sentence and at length.
        remarks: what the target's author should know of the source.
    """

    report: Report | None = None
    refusal: str = ""
    detail: str = ""
    remarks: tuple[str, ...] = ()


class Battery(Model):
    """The questions that the settings select, as the processes hand them to each other."""

    questions: tuple[Question, ...] = ()


class Store:
    """What is done once in a session, whichever of its processes needs it first.

    The others wait for it. A process that dies while it works lets go of its lock, and the next
    one does the work.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, str] = {}

    def audit(self, job: Job) -> Outcome:
        """Return the audit of ``job``."""
        text = self._once(_key("audit", job), lambda: _audited(job).model_dump_json())
        return Outcome.model_validate_json(text)

    def battery(self, job: Job) -> tuple[Question, ...]:
        """Return the questions that the settings of ``job`` select.

        Raises:
            RefusedError: they name something unknown.
        """

        def made() -> str:
            return Battery(questions=supervisor.battery(job)).model_dump_json()

        return Battery.model_validate_json(self._once(_key("battery", job), made)).questions

    def claim(self, what: str) -> bool:
        """Return whether this is the first to claim ``what``."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        try:
            (self._folder / what).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _once(self, name: str, make: Callable[[], str]) -> str:
        if name not in self._read:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            file = self._folder / name
            with _locked(file.with_suffix(".lock")):
                if not file.exists():
                    new = file.with_suffix(".new")
                    new.write_text(make(), encoding="utf-8")
                    new.replace(file)
            self._read[name] = file.read_text(encoding="utf-8")
        return self._read[name]


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # ends with the process, however that ends
        yield


def _key(kind: str, job: Job) -> str:
    digest = hashlib.sha256(job.model_dump_json().encode()).hexdigest()
    return f"{kind}-{digest[:16]}.json"


def _audited(job: Job) -> Outcome:
    try:
        report, record = supervisor.audit(job, command="pytest --nnaudit")
    except RefusedError as error:
        return Outcome(refusal=str(error), detail=error.detail)
    return Outcome(report=report, remarks=record.remarks)


class Collection:
    """The plug-in that finds the targets; registered only for ``--nnaudit``."""

    def __init__(self, config: pytest.Config) -> None:
        """Read the settings.

        Raises:
            pytest.UsageError: they are wrong, or name no target.
        """
        self.config = config
        self.store = Store(folder_of(config))
        try:
            self.settings = settings_of.load(start=config.rootpath)
            named = [settings_of.target_of(text) for text in self.settings.targets]
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None
        self.fail_on = config.getoption("nnaudit_fail_on") or self.settings.fail_on
        self.arguments = {
            (config.rootpath / path).resolve(): arguments for path, arguments in named
        }
        targets = [config.rootpath / path for path, _ in named]
        if not targets:
            raise pytest.UsageError(
                "--nnaudit: there is nothing to audit: name the targets in pyproject.toml, "
                'as in [tool.nnaudit] targets = ["train.py"]'
            )
        self.targets = set(self.arguments)
        self.found: set[Path] = set()
        self.asked: dict[Path, tuple[str, ...]] = {}
        if config.args_source is not pytest.Config.ArgsSource.ARGS:
            # They may lie outside of testpaths. Who names paths gets what lies under these. What is
            # under one already is not named: pytest 8 would then forget the rest of that folder.
            config.args += [str(target) for target in targets if not self._is_visited(target)]

    def _is_visited(self, target: Path) -> bool:
        """Whether ``target`` lies under a folder that this session collects."""
        folders = [self.config.invocation_params.dir / arg for arg in self.config.args]
        return any(target.resolve().is_relative_to(folder.resolve()) for folder in folders)

    @pytest.hookimpl(wrapper=True)
    def pytest_collect_file(
        self, file_path: Path, parent: pytest.Collector
    ) -> Generator[None, list[Any], list[Any]]:
        """Collect a target's questions instead of importing it as if it held tests."""
        others = yield
        if file_path.resolve() not in self.targets:
            return others
        self.found.add(file_path.resolve())
        patterns = self.config.getini("python_files")
        if not any(file_path.match(pattern) for pattern in patterns):
            others = [one for one in others if not isinstance(one, pytest.Module)]
        return [*others, Target.from_parent(parent, path=file_path, collection=self)]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note what is left of the questions once -k, -m and --lf have chosen.

        Raises:
            pytest.UsageError: a target is in a folder that pytest passes over; what was not audited
                must not look like a success.
        """
        for target in self.targets - self.found if session.items else ():
            if self._is_visited(target) and not self._is_ignored(target):
                raise pytest.UsageError(
                    f"--nnaudit: pytest did not visit {target}: name it on the command line, or "
                    "see norecursedirs and collect_ignore"
                )
        for item in session.items:
            if isinstance(item, Asked):
                codes = self.asked.get(item.path, ())
                self.asked[item.path] = (*codes, item.question.code)

    def _is_ignored(self, target: Path) -> bool:
        ignored = self.config.getoption("ignore") or ()
        globs = self.config.getoption("ignore_glob") or ()
        return any(target.is_relative_to(Path(one).resolve()) for one in ignored) or any(
            target.match(glob) for glob in globs
        )

    def job(self, path: Path, codes: tuple[str, ...] | None = None) -> Job:
        """Return the audit of the target at ``path``, of some of the questions or of all."""
        return Job(
            path=os.path.relpath(path),
            arguments=self.arguments[path.resolve()],
            settings=self.settings,
            remaining=codes,
        )

    def questions(self) -> tuple[Question, ...]:
        """Return the selected questions.

        Raises:
            RefusedError: the settings name something unknown.
        """
        return self.store.battery(Job(path="", settings=self.settings))


class Target(pytest.File):
    """A target: the file whose training is audited."""

    def __init__(self, *, collection: Collection, **others: Any) -> None:
        super().__init__(**others)
        self.collection = collection

    def collect(self) -> Iterator[Asked]:
        """Yield an item for each question.

        Raises:
            CollectError: the settings name something unknown.
        """
        try:
            questions = self.collection.questions()
        except RefusedError as error:
            raise self.CollectError(f"nnaudit: {error}") from None
        for question in questions:
            # A plug-in that is broken has a name of its own choice; brackets and colons break --lf.
            name = re.sub(r"[^\w.-]+", "-", f"{question.code}-{question.name}")
            yield Asked.from_parent(self, name=name, question=question, collection=self.collection)

    def outcome(self) -> Outcome:
        """Return the audit of everything that is asked of this target in this session."""
        asked = self.collection.asked.get(self.path, ())
        everything = len(asked) == len(self.collection.questions())
        job = self.collection.job(self.path, None if everything else asked)
        outcome = self.collection.store.audit(job)
        if outcome.report is not None and everything and _undecided(outcome.report):
            return Outcome(refusal=f"{job.path}: no check gave a verdict within the budget")
        return outcome


def _undecided(report: Report) -> bool:
    """Whether nothing is known after all: a session in which all is skipped looks like success."""
    return bool(report.results) and len(report.with_status(Status.INCONCLUSIVE)) == len(
        report.results
    )


class Asked(pytest.Item):
    """One question about one target."""

    def __init__(self, *, question: Question, collection: Collection, **others: Any) -> None:
        super().__init__(**others)
        self.question = question
        self.collection = collection
        self.result: Result | None = None
        self.add_marker("nnaudit")
        plugins = self.config.pluginmanager
        if plugins.hasplugin("xdist"):
            self.add_marker(pytest.mark.xdist_group(f"nnaudit-{self.path.stem}"))
        if plugins.hasplugin("timeout"):
            # The first question waits for the whole audit, which ends what hangs itself.
            self.add_marker(pytest.mark.timeout(0))

    def reportinfo(self) -> tuple[Path, int, str]:
        """Return where the item is said to be, and its title."""
        return self.path, 0, f"{self.question.code} {self.question.name}"

    def setup(self) -> None:
        """Get the answer; a crash, or an audit that could not be done, is an error of the test."""
        if self.question.code == PLUGIN:
            pytest.fail(self.question.question, pytrace=False)
        assert isinstance(self.parent, Target)
        outcome = self.parent.outcome()
        target = hashlib.sha256(str(self.path).encode()).hexdigest()[:16]
        if outcome.report is None:
            if self.collection.store.claim(f"refused-{target}"):
                pytest.fail("\n".join(filter(None, (outcome.refusal, outcome.detail))), False)
            pytest.skip(f"not run, see the first error of {self.path.name}: {outcome.refusal}")
        if outcome.remarks and self.collection.store.claim(f"remarks-{target}"):
            for remark in outcome.remarks:
                self.warn(NnauditWarning(remark))
        self.result = outcome.report.result(self.question.code)
        properties = {"status": self.result.status.value, "seconds": f"{self.result.seconds:.3g}"}
        self.user_properties += [(f"nnaudit_{key}", value) for key, value in properties.items()]
        if self.result.status is Status.ERROR:
            pytest.fail(described(self.result, self.config.rootpath), pytrace=False)

    def runtest(self) -> None:
        """Turn the answer into pytest's outcome."""
        assert self.result is not None
        result, text = self.result, described(self.result, self.config.rootpath)
        if result.status in (Status.SKIP, Status.INCONCLUSIVE):
            pytest.skip(f"{result.status.value}: {one_line(result.message)}")
        if result.suppressed:
            pytest.xfail(f"suppressed {result.status.value}: {one_line(result.suppressed)}")
        if result.status in failing(self.collection.fail_on):
            pytest.fail(text, pytrace=False)
        if result.status is Status.WARN:
            self.warn(NnauditWarning(text))


def failing(fail_on: str) -> tuple[Status, ...]:
    """Return the statuses that fail a test."""
    return (Status.FAIL, Status.WARN) if fail_on == "warn" else (Status.FAIL,)


def described(result: Result, root: Path) -> str:
    """Return what a person needs of a finding in six lines at most."""
    measured = f"measured: {one_line(result.measured)}" if result.measured else ""
    if measured and result.threshold:
        measured += f" (threshold: {one_line(result.threshold)})"
    where = ""
    if result.location is not None:
        file = Path(result.location.file)
        shown = file.relative_to(root) if file.is_relative_to(root) else file
        where = f"where: {shown}:{result.location.line}"
    lines = (
        f"{result.code} {result.name}: {one_line(result.message)}",
        measured,
        where,
        f"fix: {one_line(result.fix)}" if result.fix else "",
        f"caused by: {result.cause}" if result.cause else "",
        f"more: nnaudit rule {result.code}",
    )
    return "\n".join(filter(None, lines))


class Auditor:
    """The fixture ``nnaudit``."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def __call__(self, target: Any = None, **parts: Any) -> AuditReport:
        """Audit ``target`` and return the report.

        ``target`` is the path of a file, audited in a process of its own, once for all tests of the
        session that ask the same; ``parts`` are then settings (``select``, ``seed``, ...). Anything
        else is handed to :func:`nnaudit.audit` together with ``parts``.

        Raises:
            pytest.fail.Exception: the file cannot be audited.
            UsageError: a setting is unknown or wrong.
        """
        if not isinstance(target, str | Path):
            from nnaudit.api import audit

            return audit(**({} if target is None else {"model": target}), **parts)
        path = self._config.rootpath / target
        settings = settings_of.load(parts, start=self._config.rootpath)
        job = Job(path=os.path.relpath(path), settings=settings)
        outcome = Store(folder_of(self._config)).audit(job)
        if outcome.report is None:
            pytest.fail("\n".join(filter(None, (outcome.refusal, outcome.detail))), pytrace=False)
        return AuditReport.of(outcome.report)

    def check(self, target: Any = None, *, fail_on: str = "", **parts: Any) -> AuditReport:
        """Audit ``target``, fail the test where there are findings, and return the report.

        Raises:
            pytest.fail.Exception: a check failed, crashed or, with ``fail_on="warn"``, warned.
        """
        report = self(target, **parts)
        fail_on = fail_on or self._config.getoption("nnaudit_fail_on") or self._settings().fail_on
        root = self._config.rootpath
        bad = report.with_status(*failing(fail_on), Status.ERROR)
        for result in report.with_status(Status.WARN):
            if result not in bad:
                warnings.warn(NnauditWarning(described(result, root)), stacklevel=2)
        if bad:
            pytest.fail("\n\n".join(described(result, root) for result in bad), pytrace=False)
        if _undecided(report):
            pytest.fail("no check gave a verdict within the budget", pytrace=False)
        return report

    def _settings(self) -> Settings:
        return settings_of.load(start=self._config.rootpath)
