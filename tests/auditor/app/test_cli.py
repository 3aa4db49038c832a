"""The command line as its user sees it: what is printed where, and the exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner, Result
from programs import LOOP, SOURCE

from nnaudit.app.cli import main
from nnaudit.errors import UsageError
from nnaudit.reports import FORMATS

ASSETS = Path(__file__).parents[2] / "assets"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NNAUDIT_CACHE", str(tmp_path / "cache"))


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words), catch_exceptions=False)


def program(text: str = SOURCE, name: str = "net.py") -> str:
    Path(name).write_text(text)
    return name


def stepping(line: str) -> str:
    """The healthy program with ``line`` executed whenever the loss is computed."""
    return SOURCE.replace(
        "    return nn.functional.cross", f"    {line}\n    return nn.functional.cross"
    )


def one_sentence(result: Result) -> str:
    lines = [line for line in result.stderr.splitlines() if line.startswith("nnaudit: ")]
    assert len(lines) == 1, result.stderr
    assert "nnaudit/" not in lines[0]
    return lines[0]


def test_help_and_version() -> None:
    shown = run("--help").stdout
    assert "any training script" in shown
    assert "--select" in shown
    assert "--version" in shown
    assert run("--version").stdout.startswith("nnaudit 0.")


def test_a_file_and_a_module_are_not_named_at_once() -> None:
    result = run("-m", "package.train", program())
    assert result.exit_code == 2
    assert "not both" in one_sentence(result)


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nnaudit", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("nnaudit 0.")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("missing.py",), "missing.py: no such file"),
        (("check",), "no target"),
        ((), "no target"),
        (("rule", "DATA1O4"), "did you mean DATA104?"),
        (("--budget", "soon", "x.py"), "soon"),
        (("--device", "tpu", "x.py"), "cuda:1"),
        (("--output-format", "pdf", "x.py"), "text, concise, json"),
        (("--output-format", "json", "--output-format", "html", "x.py"), "two formats"),
        (("-o", "no/such/folder/x.html", "x.py"), "no folder"),
        (("report", "missing.json"), "cannot be read"),
        (("--baseline", "missing.json", "x.py"), "missing.json cannot be read"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(words: tuple[str, ...], said: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert said in one_sentence(result)
    assert result.stdout == ""


def test_every_format_is_named_in_the_help() -> None:
    for command in ("check", "report"):
        text = " ".join(run(command, "--help").stdout.split())
        assert f"{', '.join(FORMATS)}; repeatable." in text


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "badge"])
def test_a_saved_report_is_shown_in_every_format(name: str) -> None:
    result = run("report", str(ASSETS / "failing-v1.json"), "--output-format", name)
    assert result.exit_code == 0
    assert "double-activation" in result.stdout or "DoubleActivation" in result.stdout


def test_a_saved_report_is_compared_with_another() -> None:
    file = str(ASSETS / "failing-v1.json")
    result = run("report", file, "--baseline", file)
    assert "3 of 39 checks fail, none of them new" in result.stdout


def test_a_wrong_option_names_the_right_one() -> None:
    assert "--select" in run("--selct", "DATA", "x.py").stderr


def test_init_writes_a_file_and_never_over_another() -> None:
    assert run("init", "mine.py").exit_code == 0
    text = Path("mine.py").read_text()
    compile(text, "mine.py", "exec")
    assert "build_model" in text
    Path("mine.py").write_text("precious")
    assert run("init", "mine.py").exit_code == 2
    assert Path("mine.py").read_text() == "precious"


def test_rule_explains_by_code_and_by_name() -> None:
    for word in ("DATA104", "shuffling"):
        result = run("rule", word)
        assert result.exit_code == 0
        assert "Why:" in result.stdout
        assert "drift = 0.15" in result.stdout
    assert len(run("rule", "--all").stdout.splitlines()) > 80


def test_without_a_target_those_of_pyproject_are_audited() -> None:
    Path("pyproject.toml").write_text('[tool.nnaudit]\ntargets = ["missing.py -- --epochs 1"]')
    assert "missing.py: no such file" in one_sentence(run())
    assert "missing.py: no such file" in one_sentence(run("--", "--epochs", "3"))


@pytest.mark.slow
@pytest.mark.usefixtures("warm_children")
class TestAudits:
    """Each starts a child process."""

    def test_a_healthy_program(self) -> None:
        result = run("--select", "DATA101,GRAD106", program())
        assert result.exit_code == 0, result.stdout + result.stderr
        assert "DATA101" in result.stdout
        (page,) = Path("cache").glob("net-*/*/report.html")
        assert str(page) in result.stderr
        assert "<html" in page.read_text()
        assert sorted(p.name for p in Path().iterdir()) == ["cache", "net.py"]

    def test_a_loop_in_the_file_is_audited_and_not_one_of_ours(self) -> None:
        found = run("--select", "STEP102", program(SOURCE + LOOP))
        assert found.exit_code == 1
        assert "zero_grad is not called" in " ".join(found.stdout.split())

    def test_the_parts_are_audited_where_the_loop_cannot_be_run(self) -> None:
        text = SOURCE + LOOP.replace("def main():", "import sys\n\ndef main():\n    sys.argv[1]")
        result = run("--select", "STEP102", "--output-format", "json", program(text))
        parts = {p["name"]: p for p in json.loads(result.stdout)["target"]["parts"]}
        assert result.exit_code == 0
        assert "IndexError" in parts["own loop"]["description"]

    def test_a_script_says_first_what_it_died_of_itself(self) -> None:
        text = SOURCE + LOOP.replace("def main():", "open('data.bin')\n\ndef main():")
        text = text.replace(
            "open('data.bin')", "open('data.bin' if __name__ == '__main__' else '')"
        )
        result = run("--select", "STEP102", program(text))
        assert result.exit_code == 4
        assert "data.bin" in one_sentence(result)

    def test_json_on_stdout_is_nothing_but_json(self) -> None:
        noisy = program("print('hello')\n" + SOURCE)
        result = run("--select", "DATA101", "--output-format", "json", noisy)
        report = json.loads(result.stdout)
        assert [r["code"] for r in report["results"]] == ["DATA101"]
        assert "hello" not in result.stderr
        assert "HTML report" not in result.stderr

    def test_only_what_did_not_pass_is_asked_again(self) -> None:
        path = program(SOURCE.replace("torch.randn(256, 8)", "torch.randn(256, 8) / 0 * 0"))
        run("--select", "DATA101,DATA102", path)
        again = run("--lf", "--output-format", "json", path)
        assert [r["code"] for r in json.loads(again.stdout)["results"]] == ["DATA101"]

    def test_an_audit_is_kept_though_nobody_reads_its_report_to_the_end(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def closed(*_: object) -> None:
            raise UsageError("standard output cannot be written")

        path = program()
        with monkeypatch.context() as patched:
            patched.setattr("nnaudit.app.output.Output.write", closed)
            run("--select", "DATA101", path)
        assert "DATA101" in run("report", "--last", path).stdout

    def test_the_programs_own_output_is_shown_when_asked_for(self) -> None:
        result = run("--select", "DATA101", "-v", program("print('hello')\n" + SOURCE))
        assert "hello" in result.stderr

    def test_a_saved_report_is_shown_again_without_the_program(self) -> None:
        run("--select", "DATA101", "-o", "run.json", program())
        Path("net.py").unlink()
        result = run("report", "run.json")
        assert result.exit_code == 0
        assert "DATA101" in result.stdout

    def test_a_fault_gives_exit_code_1_unless_told_otherwise(self) -> None:
        faulty = SOURCE.replace("torch.randn(256, 8)", "torch.randn(256, 8) / 0 * 0")
        path = program(faulty)
        assert run("--select", "DATA101", path).exit_code == 1
        assert run("--select", "DATA101", "--exit-zero", path).exit_code == 0

    def test_only_what_the_baseline_lacks_fails(self) -> None:
        faulty = SOURCE.replace("torch.randn(256, 8)", "torch.randn(256, 8) / 0 * 0")
        asked = ("--select", "DATA101,DATA102")
        assert run(*asked, "-o", "old.json", program()).exit_code == 0
        path = program(faulty)
        new = run(*asked, "-o", "new.json", "--baseline", "old.json", path)
        assert new.exit_code == 1
        known = run(*asked, "--baseline", "new.json", path)
        assert known.exit_code == 0
        assert "1 of 2 checks fails, none of them new" in known.stdout
        fixed = run(*asked, "--baseline", "new.json", program())
        assert "fixed           DATA101 finite-values" in fixed.stdout

    def test_several_targets_make_one_json(self) -> None:
        result = run(
            "--select", "DATA101", "--output-format", "json", "-j", "2",
            program(), program(name="other.py"),
        )  # fmt: skip
        names = [r["target"]["name"] for r in json.loads(result.stdout)["reports"]]
        assert names == ["net", "other"]

    def test_one_unusable_target_does_not_hide_the_other(self) -> None:
        result = run("--select", "DATA101", program(), "missing.py")
        assert result.exit_code == 2
        assert "DATA101" in result.stdout
        assert "missing.py" in result.stderr

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("def f(:\n", "net.py:1: syntax error"),
            ("x = 1\n", "defines no model"),
            (SOURCE.replace("256, 8", "0, 8").replace(", shuffle=True", ""), "yields no batch"),
            (SOURCE.replace("(output, target)", "(output, target, reduction='none')").replace(
                "loss_fn(output, target, reduction='none')", "loss_fn(output, target)"), "(32,)"),
            (SOURCE + "\nimport sys\nsys.exit(3)\n", "sys.exit(3)"),
            (SOURCE.replace("return nn.Sequential", "return 3; nn.Sequential"), "returned a int"),
        ],
    )  # fmt: skip
    def test_an_unusable_target_is_one_sentence_and_exit_code_2(self, text: str, said: str) -> None:
        result = run(program(text))
        assert result.exit_code == 2
        assert said in one_sentence(result)

    @pytest.mark.parametrize(
        "line", ["import no_such_module", "raise ValueError('no_such_module')"]
    )
    @pytest.mark.parametrize("form", ["module", "script"])
    def test_a_program_that_raises_before_it_trains_has_one_exit_code(
        self, form: str, line: str
    ) -> None:
        result = run("--as", form, program(f"{line}\n{SOURCE}"))
        assert result.exit_code == 4
        assert "no_such_module" in result.stderr

    def test_unknown_codes_and_missing_devices(self) -> None:
        for words, said in (
            (("--select", "DATA999"), "DATA999"),
            (("--device", "cuda:77"), "cuda:77"),
            (("--select", "DATA101", "--ignore", "DATA"), "no check is left"),
        ):
            result = run(*words, program())
            assert result.exit_code == 2
            assert said in one_sentence(result)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (SOURCE.replace("Linear(8, 16)", "Linear(9, 16)"), "mat1 and mat2"),
            (stepping("raise ValueError('no')"), "net.py:17: your code raised ValueError: no"),
            (SOURCE + "\nimport os\nos._exit(7)\n", "exit code 7"),
            (SOURCE + "\nimport ctypes\nctypes.string_at(0)\n", "SIGSEGV"),
        ],
    )
    def test_a_crash_of_the_users_is_one_sentence_and_exit_code_4(
        self, text: str, said: str
    ) -> None:
        result = run("--select", "GRAD106,FIT101", program(text))
        assert result.exit_code == 4, result.stdout
        assert said in one_sentence(result)

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("import os; os._exit(9)", "exit code 9"),
            ("import time; time.sleep(99)", "hung for 3 s"),
            ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
        ],
    )
    def test_what_kills_the_process_costs_what_needs_it_and_not_the_rest(
        self, line: str, said: str
    ) -> None:
        path = program(stepping(line))
        result = run(
            "--select", "DATA104,GRAD106", "--check-timeout", "3s", "--output-format", "json", path
        )
        status = {r["code"]: r["status"] for r in json.loads(result.stdout)["results"]}
        assert status["GRAD106"] == "error"
        assert status["DATA104"] in ("pass", "inconclusive")
        assert result.exit_code == 4
        assert said in one_sentence(result)

    def test_a_loader_that_raises_in_the_middle(self) -> None:
        text = SOURCE + (
            "\nclass Rows(torch.utils.data.Dataset):\n"
            "    def __len__(self):\n        return 600\n"
            "    def __getitem__(self, i):\n"
            "        if i == 300:\n            raise OSError('bad row')\n"
            "        return torch.randn(8), i % 3\n"
            "\ndef train_loader():\n    return DataLoader(Rows(), batch_size=32)\n"
        )
        result = run("--select", "DATA101", "--output-format", "json", program(text))
        (answer,) = json.loads(result.stdout)["results"]
        assert answer["status"] == "error"
        assert "OSError: bad row" in answer["message"]
        assert answer["location"]["line"] > 20
        assert result.exit_code == 4

    def test_a_budget_bounds_the_audit_and_what_did_not_fit_is_said(self) -> None:
        path = program(stepping("import time; time.sleep(0.3)"))
        result = run("--budget", "2s", "--output-format", "json", path)
        report = json.loads(result.stdout)
        late = [r for r in report["results"] if "budget" in r["message"]]
        assert late
        assert {r["status"] for r in late} == {"inconclusive"}
        assert len(report["results"]) > 5

    def test_target_shows_what_was_found(self) -> None:
        result = run("target", program())
        assert result.exit_code == 0
        assert "build_optimizer" in result.stdout or "SGD" in result.stdout
        assert "val_loader" in result.stdout

    def test_the_file_that_init_writes_passes(self) -> None:
        run("init", "mine.py")
        result = run("--preset", "quick", "mine.py")
        assert result.exit_code == 0, result.stdout

    def test_a_notebook_is_audited_as_the_script_of_its_cells(self) -> None:
        notebook = nbformat.v4.new_notebook()
        for cell in ("%matplotlib inline", SOURCE, LOOP, "main()"):
            notebook.cells.append(nbformat.v4.new_code_cell(cell))
        nbformat.write(notebook, "train.ipynb")
        result = run("--select", "STEP102", "train.ipynb")
        assert result.exit_code == 1, result.stderr
        assert "train.ipynb:" in result.stdout
        assert "loss.backward()" in result.stdout
