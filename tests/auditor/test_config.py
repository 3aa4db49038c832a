"""Where settings come from, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import stub_audit
from click.testing import CliRunner

from nnaudit import config, settings
from nnaudit.app.cli import FINDINGS, main
from nnaudit.errors import UsageError
from nnaudit.processes import supervisor


def write(folder: Path, text: str) -> None:
    (folder / "pyproject.toml").write_text(text)


def test_defaults(tmp_path: Path) -> None:
    settings = config.load(start=tmp_path, environment={})
    assert (settings.preset, settings.seed, settings.budget) == ("full", 0, None)


def test_flags_win_over_variables_and_these_over_the_file(tmp_path: Path) -> None:
    write(tmp_path, '[tool.nnaudit]\nseed = 1\nbudget = "1m"\npreset = "quick"')
    settings = config.load(
        {"seed": 3}, start=tmp_path, environment={"NNAUDIT_SEED": "2", "NNAUDIT_BUDGET": "90s"}
    )
    assert (settings.seed, settings.budget, settings.preset) == (3, 90.0, "quick")


def test_the_file_is_looked_for_upwards(tmp_path: Path) -> None:
    write(tmp_path, "[tool.nnaudit]\nseed = 5")
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert config.load(start=tmp_path / "a" / "b", environment={}).seed == 5


def test_a_file_without_the_table_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "[tool.nnaudit]\nseed = 5")
    (tmp_path / "package").mkdir()
    write(tmp_path / "package", "[project]\nname = 'x'")
    assert config.load(start=tmp_path / "package", environment={}).seed == 5


def test_lists_may_be_written_with_commas(tmp_path: Path) -> None:
    settings = config.load({"select": "DATA, FIT101"}, start=tmp_path, environment={})
    assert settings.select == ("DATA", "FIT101")


def test_keys_with_a_dash(tmp_path: Path) -> None:
    write(tmp_path, '[tool.nnaudit]\nfail-on = "warn"\n[tool.nnaudit.thresholds.DATA110]\na = 2')
    settings = config.load(start=tmp_path, environment={})
    assert settings.fail_on == "warn"
    assert settings.thresholds == {"DATA110": {"a": 2.0}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[tool.nnaudit\n", "cannot be read"),
        ("[tool.nnaudit]\nbudgett = 3", "did you mean budget"),
        ('[tool.nnaudit]\nbudget = "soon"', "60s"),
        ("[tool.nnaudit]\nbudget = 0", "longer than zero"),
        ("[tool.nnaudit]\nseed = -1", "seed"),
        ('[tool.nnaudit]\ndevice = "tpu"', "cuda:1"),
        ("[tool]\nnnaudit = 3", "must be a table"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    write(tmp_path, text)
    with pytest.raises(UsageError, match=said) as caught:
        config.load(start=tmp_path, environment={})
    assert "pyproject.toml" in str(caught.value)
    assert "\n" not in str(caught.value).removesuffix("\n")


def test_an_unknown_variable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean seed"):
        config.load(start=tmp_path, environment={"NNAUDIT_SEEED": "1"})


def test_targets_of_the_file_are_found_from_a_folder_below(tmp_path: Path) -> None:
    write(tmp_path, '[tool.nnaudit]\ntargets = ["train.py"]')
    (tmp_path / "a").mkdir()
    assert config.load(start=tmp_path, environment={}).targets == ("train.py",)
    assert config.load(start=tmp_path / "a", environment={}).targets == ("../train.py",)


def test_a_target_of_the_file_may_bring_its_own_words(tmp_path: Path) -> None:
    write(tmp_path, """[tool.nnaudit]\ntargets = ["train.py -- --name 'a b'"]""")
    (tmp_path / "a").mkdir()
    (target,) = config.load(start=tmp_path / "a", environment={}).targets
    assert config.target_of(target) == ("../train.py", ("--name", "a b"))
    assert config.target_of("train.py") == ("train.py", ())
    with pytest.raises(UsageError, match="No closing quotation"):
        config.target_of("train.py -- 'a")


def test_the_command_line_takes_the_targets_of_the_file_with_their_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, '[tool.nnaudit]\ntargets = ["a.py", "b.py -- --epochs 1"]')
    for name in ("a.py", "b.py"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(supervisor, "audit", stub_audit.audit)
    log = tmp_path / "audits.log"
    assert CliRunner().invoke(main, ["check", "-o", "all.json"]).exit_code == FINDINGS
    assert log.read_text().splitlines() == ["audit a.py all", "audit b.py --epochs 1 all"]
    CliRunner().invoke(main, ["b.py", "-o", "b.json", "--", "--lr", "1"])
    assert log.read_text().splitlines()[2:] == ["audit b.py --lr 1 all"]


def test_per_module_ignores_may_be_lists_or_words(tmp_path: Path) -> None:
    write(
        tmp_path,
        '[tool.nnaudit.per-module-ignores]\n"net.embed.*" = ["GRAD101"]\nhead = "FIT101, DATA"',
    )
    settings = config.load(start=tmp_path, environment={})
    assert settings.per_module_ignores == {"net.embed.*": ("GRAD101",), "head": ("FIT101", "DATA")}


def test_every_setting_says_where_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, '[tool.nnaudit]\nseed = 1\nbudget = "1m"\nselect = ["DATA"]')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NNAUDIT_SEED", "2")
    said = CliRunner().invoke(main, ["config"]).output
    lines = {line.partition(" ")[0]: line for line in said.splitlines()}
    assert lines["seed"].split() == ["seed", "=", "2", "#", "NNAUDIT_SEED"]
    assert lines["budget"].endswith("pyproject.toml, [tool.nnaudit]")
    assert lines["preset"].endswith("# default")
    assert lines["select"].startswith('select = ["DATA"]')
    assert set(lines) == {key.replace("_", "-") for key in config.Settings.model_fields}


@pytest.mark.parametrize(
    ("text", "expected"), [("60", 60), ("90s", 90), ("2m", 120), ("1.5h", 5400), (7, 7)]
)
def test_durations(text: str, expected: float) -> None:
    assert settings.seconds(text) == expected
