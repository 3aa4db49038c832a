"""``pytest --nnaudit`` and the fixture, mostly on an audit that takes no time."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from xml.etree import ElementTree

import pytest
import stub_audit

from nnaudit.app import pytest_items
from nnaudit.engine.job import Job
from nnaudit.engine.record import RefusedError
from nnaudit.processes import supervisor

pytest_plugins = ["pytester"]

pytestmark = pytest.mark.skipif(
    not any(point.name == "nnaudit" for point in entry_points(group="pytest11")),
    reason="installed before nnaudit had a pytest plug-in: run scripts/setup dev",
)

CONFTEST = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import stub_audit
stub_audit.install()
"""

COUNTS = {"failed": 1, "passed": 3, "xfailed": 1, "skipped": 2, "errors": 1, "warnings": 1}
"""What comes of one target with each status once, one of its failures suppressed."""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    # Imported here already, it need not be imported anew for every session that a test runs.
    assert pytest_items.supervisor is supervisor
    monkeypatch.setattr(supervisor, "audit", stub_audit.audit)
    monkeypatch.setattr(supervisor, "battery", stub_audit.battery)
    pytester.makepyprojecttoml(
        """
        [tool.nnaudit]
        targets = ["model.py"]
        [tool.pytest.ini_options]
        filterwarnings = ["error"]
        """
    )
    pytester.makepyfile(model="raise SystemExit('a target is never imported here')")
    return pytester


def ran(project: pytest.Pytester, *words: str) -> pytest.RunResult:
    return project.runpytest_inprocess("-p", "no:cacheprovider", *words)


def audits(project: pytest.Pytester) -> list[str]:
    log = project.path / "audits.log"
    return log.read_text().splitlines() if log.exists() else []


def test_every_status_becomes_what_pytest_calls_it(project: pytest.Pytester) -> None:
    result = ran(project, "--nnaudit", "-rsxwE")
    result.assert_outcomes(**COUNTS)
    result.stdout.fnmatch_lines_random(
        [
            "*skip: What MODE101 says.*",
            "*inconclusive: What FIT101 says.*",
            "XFAIL model.py::GRAD101-gradient-reach*suppressed fail: frozen (m.py:1)*",
            "*NnauditWarning: INIT101 initial-loss: What INIT101 says.*",
            "ERROR model.py::SEED101-seeded-run*",
        ]
    )
    assert audits(project) == ["battery", "audit model.py all"]


def test_a_failure_is_a_few_lines_without_a_traceback(project: pytest.Pytester) -> None:
    lines = ran(project, "--nnaudit", "-k", "shuffling").stdout.lines
    start = next(i for i, line in enumerate(lines) if "DATA104 shuffling ___" in line)
    end = next(i for i, line in enumerate(lines) if "short test summary" in line)
    assert lines[start + 1 : end] == [
        "DATA104 shuffling: 98 % of neighbours share a label.",
        "measured: 0.98 (threshold: 0.15)",
        "where: model.py:7",
        "fix: DataLoader(..., shuffle=True)",
        "caused by: DATA101",
        "more: nnaudit rule DATA104",
    ]


def test_an_item_has_a_node_id_that_can_be_asked_for(project: pytest.Pytester) -> None:
    result = ran(project, "--nnaudit", "model.py::STEP101-parameters-move", "-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["model.py::STEP101-parameters-move PASSED*"])
    assert audits(project)[-1] == "audit model.py STEP101"


def test_only_what_k_leaves_is_audited(project: pytest.Pytester) -> None:
    ran(project, "--nnaudit", "-k", "STEP").assert_outcomes(passed=2, deselected=6)
    assert audits(project)[-1] == "audit model.py STEP101 STEP105"


def test_the_marker_parts_audits_from_tests(project: pytest.Pytester) -> None:
    project.makepyfile(test_mine="def test_mine(): pass")
    ran(project, "--nnaudit", "-m", "not nnaudit").assert_outcomes(passed=1, deselected=8)
    assert audits(project) == ["battery"]
    result = ran(project, "--nnaudit", "-m", "nnaudit", "--strict-markers")
    result.assert_outcomes(**(COUNTS | {"deselected": 1}))


def test_last_failed(project: pytest.Pytester) -> None:
    project.runpytest_inprocess("--nnaudit")
    result = project.runpytest_inprocess("--nnaudit", "--lf")
    result.assert_outcomes(failed=1, errors=1)
    assert audits(project)[-1] == "audit model.py DATA104 SEED101"


def test_fail_on_warn(project: pytest.Pytester) -> None:
    result = ran(project, "--nnaudit", "--nnaudit-fail-on", "warn", "-k", "INIT101 or DATA104")
    result.assert_outcomes(failed=2, deselected=6)


def test_a_filter_that_names_the_category_decides_about_warnings(project: pytest.Pytester) -> None:
    strict = ("-W", "error::nnaudit.NnauditWarning")
    result = ran(project, "--nnaudit", "-k", "INIT101", *strict)
    result.assert_outcomes(failed=1, deselected=7)


def test_junitxml(project: pytest.Pytester) -> None:
    ran(project, "--nnaudit", "--junitxml", "junit.xml")
    suite = ElementTree.parse(project.path / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    shown = {key: suite.attrib[key] for key in ("tests", "failures", "errors", "skipped")}
    assert shown == {"tests": "8", "failures": "1", "errors": "1", "skipped": "3"}
    failure = suite.find("testcase[@name='DATA104-shuffling']/failure")
    assert failure is not None
    assert (failure.text or "").count("\n") <= 6


def test_targets_outside_of_testpaths_are_found_once(project: pytest.Pytester) -> None:
    project.mkdir("tests").joinpath("test_mine.py").write_text("def test_mine(): pass")
    both = COUNTS | {"passed": 4}
    ran(project, "--nnaudit", "-o", "testpaths=tests").assert_outcomes(**both)
    ran(project, "--nnaudit").assert_outcomes(**both)
    ran(project, "--nnaudit", "tests").assert_outcomes(passed=1)
    ran(project, "--nnaudit", ".").assert_outcomes(**both)


def test_a_target_may_bring_words_for_its_script(project: pytest.Pytester) -> None:
    project.makepyprojecttoml('[tool.nnaudit]\ntargets = ["model.py -- --epochs 1"]')
    ran(project, "--nnaudit", "-k", "STEP101").assert_outcomes(passed=1, deselected=7)
    assert audits(project)[-1] == "audit model.py --epochs 1 STEP101"


def test_a_target_that_pytest_passes_over_is_told(project: pytest.Pytester) -> None:
    project.makepyfile(test_mine="def test_mine(): pass")
    project.makepyprojecttoml('[tool.nnaudit]\ntargets = ["old/model.py"]')
    project.mkdir("old").joinpath("model.py").write_text("")
    result = ran(project, "--nnaudit", "-o", "norecursedirs=old")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*did not visit *model.py*"])
    result = ran(project, "--nnaudit", "-o", "norecursedirs=old", "--ignore", "old")
    result.assert_outcomes(passed=1)


def test_a_target_that_holds_tests_keeps_them(project: pytest.Pytester) -> None:
    project.makepyprojecttoml('[tool.nnaudit]\ntargets = ["test_model.py"]')
    project.makepyfile(test_model="def test_mine(): pass")
    result = ran(project, "--nnaudit", "-k", "mine or STEP101")
    result.assert_outcomes(passed=2, deselected=7)


def test_a_target_that_cannot_be_audited_is_one_error(project: pytest.Pytester) -> None:
    (project.path / "model.py").write_text("refuse")
    result = ran(project, "--nnaudit", "-rs")
    result.assert_outcomes(errors=1, skipped=7)
    result.stdout.fnmatch_lines(["model.py: there is no model", "the details"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_an_audit_without_any_verdict_is_no_success(project: pytest.Pytester) -> None:
    (project.path / "model.py").write_text("undecided")
    result = ran(project, "--nnaudit")
    result.assert_outcomes(errors=1, skipped=7)


@pytest.mark.parametrize(
    ("table", "said"),
    [("", "*there is nothing to audit*"), ("targetz = 3", "*did you mean targets?*")],
)
def test_wrong_settings_are_said_in_a_sentence(
    project: pytest.Pytester, table: str, said: str
) -> None:
    project.makepyprojecttoml(f"[tool.nnaudit]\n{table}")
    result = ran(project, "--nnaudit")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([said])


def test_an_unknown_check_in_the_settings_is_said_in_a_sentence(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    def battery(job: Job) -> None:
        raise RefusedError("no check has the code 'DAT101': did you mean DATA101?", 2)

    monkeypatch.setattr(supervisor, "battery", battery)
    result = ran(project, "--nnaudit")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["nnaudit: no check has the code 'DAT101'*"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_nothing_happens_unless_asked(project: pytest.Pytester) -> None:
    project.makepyfile(test_mine="def test_mine(): pass")
    ran(project).assert_outcomes(passed=1)
    assert audits(project) == []


def test_the_fixture_judges_only_when_it_checks(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import pytest

        def test_report(nnaudit):
            assert [r.code for r in nnaudit("model.py").failed] == ["DATA104"]

        def test_findings(nnaudit):
            with pytest.warns(UserWarning, match="INIT101"):
                nnaudit.check("model.py")
        """
    )
    result = ran(project)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["DATA104 shuffling: 98 %*", "SEED101 seeded-run: *"])
    assert audits(project) == ["audit model.py all"]


@pytest.mark.slow
@pytest.mark.parametrize("dist", ["load", "loadgroup"])
def test_workers_share_one_audit(project: pytest.Pytester, dist: str) -> None:
    pytest.importorskip("xdist")
    project.makeconftest(CONFTEST)
    project.makepyfile(test_mine="def test_mine(): pass")
    result = project.runpytest_subprocess("--nnaudit", "-n", "2", "--dist", dist)
    result.assert_outcomes(**(COUNTS | {"passed": 4}))
    assert sorted(audits(project)) == ["audit model.py all", "battery"]


def test_each_worker_may_run_everything(project: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    project.makeconftest(CONFTEST)
    result = project.runpytest_subprocess("--nnaudit", "--dist", "each", "--tx", "2*popen")
    result.assert_outcomes(failed=2, passed=6, xfailed=2, skipped=4, errors=2, warnings=2)
    assert sorted(audits(project)) == ["audit model.py all", "battery"]


@pytest.mark.slow
def test_pytest_html_shows_the_findings(project: pytest.Pytester) -> None:
    pytest.importorskip("pytest_html")
    project.makeconftest(CONFTEST)
    words = ("--nnaudit", "--html", "page.html", "--self-contained-html", "-p", "no:xdist")
    project.runpytest_subprocess(*words)
    page = (project.path / "page.html").read_text()
    assert "model.py::DATA104-shuffling" in page
    assert "98 % of neighbours share a label" in page


REAL = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def build_model():
    return nn.Linear(4, 3)


def train_loader():
    data = TensorDataset(torch.randn(60, 4), torch.arange(60) % 3)
    return DataLoader(data, 10, shuffle=True)


def loss_fn(output, target):
    return nn.functional.cross_entropy(output.softmax(1), target)
"""


@pytest.mark.slow
def test_a_real_audit(pytester: pytest.Pytester) -> None:
    pytester.makepyprojecttoml(
        '[tool.nnaudit]\ntargets = ["model.py"]\nselect = ["DATA101", "LOSS101"]\ndevice = "cpu"'
    )
    pytester.makepyfile(model=REAL)
    result = pytester.runpytest_subprocess("--nnaudit", "-v")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["model.py::LOSS101-double-activation FAILED*", "fix: *"])


@pytest.mark.slow
def test_the_fixture_audits_objects_in_the_test_itself(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_mine=REAL
        + """
def test_mine(nnaudit):
    report = nnaudit.check(
        model=build_model, train_loader=train_loader, select="DATA101", device="cpu"
    )
    assert report.result("DATA101").status == "pass"
"""
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_the_plugin_costs_a_session_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, pytest, nnaudit.app.pytest_plugin\n"
        "assert pytest.main(['-q', '-p', 'no:cacheprovider', sys.argv[1]]) == 0\n"
        "print(sorted(m for m in ('torch', 'pydantic', 'numpy', 'click') if m in sys.modules),"
        " sorted(m for m in sys.modules if m.startswith('nnaudit')))"
    )
    (tmp_path / "test_mine.py").write_text("def test_mine(): pass")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""},
    )
    assert done.stdout.splitlines()[-1] == (
        "[] ['nnaudit', 'nnaudit._version', 'nnaudit.app', 'nnaudit.app.pytest_plugin', "
        "'nnaudit.app.pytest_session', 'nnaudit.app.pytest_warning']"
    )
