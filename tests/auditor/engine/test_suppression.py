"""What the user has suppressed is listed with its reason and counts in no verdict."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nnaudit
from nnaudit.app import cli
from nnaudit.engine import suppression
from nnaudit.errors import UsageError
from nnaudit.report import Kind, Location, Result, Status

SCRIPT = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 8){body}
        self.head = nn.Linear(8, 3){head}
        self.spare = nn.Linear(4, 8){spare}

    def forward(self, x):
        return self.head((self.body(x) + self.spare(x)).detach())


model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = DataLoader(TensorDataset(torch.randn(64, 4), torch.arange(64) % 3), 16, shuffle=True)
for epoch in range(20):
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
"""


def finding(**changes: Any) -> Result:
    fields: dict[str, Any] = {
        "code": "GRAD101",
        "name": "gradient-reach",
        "family": "GRAD",
        "kind": Kind.EXACT,
        "status": Status.FAIL,
        "message": "No gradient.",
        "module": "net.embed",
    }
    return Result(**(fields | changes))


def by_table(result: Result, **table: list[str]) -> str:
    patterns = {key.replace("_", "."): value for key, value in table.items()}
    return suppression.applied(result, patterns, ()).suppressed


def by_comment(folder: Path, source: str, *lines: int, **changes: Any) -> str:
    file = folder / "train.py"
    file.write_text(source)
    places = [Location(file=str(file), line=line) for line in lines]
    return suppression.applied(finding(**changes), {}, places).suppressed


@pytest.mark.parametrize("selector", ["GRAD101", "grad101", "GRAD", "gradient-reach"])
def test_a_comment_names_a_code_a_family_or_a_name(tmp_path: Path, selector: str) -> None:
    source = f"a = 1\nnet = make()  # nnaudit: ignore[{selector}] pretrained elsewhere\n"
    assert by_comment(tmp_path, source, 2) == "pretrained elsewhere (train.py:2)"


@pytest.mark.parametrize("comment", ["ignore[DATA104] x", "ignore x", "ignore[] x", "keep[GRAD]"])
def test_a_comment_for_something_else_does_nothing(tmp_path: Path, comment: str) -> None:
    assert by_comment(tmp_path, f"net = make()  # nnaudit: {comment}\n", 1) == ""


def test_what_suppresses_is_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "train.py"
    file.write_text("net = make()  # nnaudit: ignore[GRAD101] frozen\n")
    places = [Location(file=str(file), line=1)]
    assert suppression.applied(finding(), {}, places).suppressed_by == "source"
    assert suppression.applied(finding(), {"net.*": ["GRAD"]}, places).suppressed_by == "settings"
    assert suppression.applied(finding(), {}, ()).suppressed_by == ""


def test_a_comment_without_a_reason_is_told_by_its_place(tmp_path: Path) -> None:
    source = "net = make()  # nnaudit: ignore[DATA104, GRAD101]\n"
    assert by_comment(tmp_path, source, 1) == "comment at train.py:1"


def test_a_comment_counts_for_the_whole_statement_it_stands_in(tmp_path: Path) -> None:
    source = "net = make(\n    1,\n)  # nnaudit: ignore[GRAD101] frozen\nother = make()\n"
    assert by_comment(tmp_path, source, 1) == "frozen (train.py:3)"
    assert by_comment(tmp_path, source, 4) == ""


def test_a_comment_within_a_function_does_not_cover_the_function(tmp_path: Path) -> None:
    source = "def build():\n    a = 1  # nnaudit: ignore[GRAD101] no\n    return a\n"
    assert by_comment(tmp_path, source, 1) == ""


def test_text_that_only_looks_like_a_comment_does_nothing(tmp_path: Path) -> None:
    assert by_comment(tmp_path, 'a = "# nnaudit: ignore[GRAD101] x"\n', 1) == ""


@pytest.mark.parametrize("source", ["def (:  # nnaudit: ignore[GRAD101]\n", "\0nnaudit"])
def test_a_file_that_is_no_python_suppresses_nothing(tmp_path: Path, source: str) -> None:
    assert by_comment(tmp_path, source, 1) == ""
    assert suppression.comments_in(tmp_path / "absent.py") == ()


def test_every_place_of_a_finding_needs_its_comment(tmp_path: Path) -> None:
    source = "a = 1  # nnaudit: ignore[GRAD101] first\nb = 2\n"
    assert by_comment(tmp_path, source, 1, 2) == ""
    assert by_comment(tmp_path, source + "", 1, 1) == "first (train.py:1)"


def test_a_finding_without_a_place_is_not_suppressed_by_comments(tmp_path: Path) -> None:
    assert by_comment(tmp_path, "a = 1  # nnaudit: ignore[GRAD101] x\n") == ""


def test_a_pattern_covers_a_module_and_what_is_in_it() -> None:
    table = {"net.embed.*": ["GRAD101"]}
    for module, covered in {
        "net.embed": True,
        "net.embed.0": True,
        "net.embedding": False,
        "net": False,
        "": False,
    }.items():
        suppressed = suppression.applied(finding(module=module), table, ()).suppressed
        assert bool(suppressed) is covered, module


def test_a_star_covers_findings_about_no_module() -> None:
    assert suppression.applied(finding(module=""), {"*": ["GRAD"]}, ()).suppressed


def test_a_table_suppresses_only_the_checks_it_names() -> None:
    assert by_table(finding(), net_embed=["DATA", "GRAD102"]) == ""


def test_all_modules_of_a_finding_must_be_covered() -> None:
    both = finding(modules=("net.embed", "net.head"))
    assert by_table(both, net_embed=["GRAD101"]) == ""
    assert by_table(both, net_embed=["GRAD101"], net_head=["GRAD"]) == (
        'per-module-ignores: "net.embed" and "net.head"'
    )


@pytest.mark.parametrize("status", [Status.PASS, Status.ERROR, Status.SKIP, Status.INCONCLUSIVE])
def test_only_findings_can_be_suppressed(status: Status) -> None:
    assert suppression.applied(finding(status=status), {"*": ["GRAD101"]}, ()).suppressed == ""


class Cut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).detach())


def audited(**settings: Any) -> nnaudit.Report:
    data = TensorDataset(torch.randn(32, 4), torch.arange(32) % 3)
    return nnaudit.audit(
        Cut, DataLoader(data, 8, shuffle=True), select="GRAD101", device="cpu", **settings
    )


def test_the_python_form_lists_what_is_suppressed_and_does_not_count_it() -> None:
    assert audited().failed
    report = audited(per_module_ignores={"body.*": "GRAD101"})
    (suppressed,) = report.suppressed
    assert (suppressed.status, report.failed) == (Status.FAIL, ())
    assert suppressed.suppressed == 'per-module-ignores: "body.*"'
    assert (report.totals.suppressed, report.totals.fail) == (1, 0)


def test_a_threshold_may_be_set_by_the_name_of_its_check() -> None:
    labels = torch.tensor([0] * 400 + [1] * 100 + [2] * 100)
    data = TensorDataset(torch.randn(600, 4), labels)

    def said(**thresholds: dict[str, float]) -> str:
        report = nnaudit.audit(
            Cut,
            DataLoader(data, 50, shuffle=True),
            select="DATA110",
            device="cpu",
            thresholds={key.replace("_", "-"): value for key, value in thresholds.items()},
        )
        return report.result("DATA110").message

    assert said(class_balance={"imbalance": 2}) == said(DATA110={"imbalance": 2})
    assert said(class_balance={"imbalance": 2}) != said()


def test_an_unknown_check_in_the_table_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r'per-module-ignores."x".*did you mean GRAD101'):
        audited(per_module_ignores={"x": ["GARD101"]})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("comments", "code"),
    [
        ({"body": "# nnaudit: ignore[GRAD] features of last year"}, cli.FINDINGS),
        (
            {
                "body": "# nnaudit: ignore[GRAD] features of last year",
                "spare": "# nnaudit: ignore[GRAD101, GARD105] for the next task",
            },
            cli.OK,
        ),
    ],
    ids=["one of two", "both"],
)
def test_comments_in_a_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comments: dict[str, str], code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    places = dict.fromkeys(("body", "head", "spare"), "") | comments
    Path("train.py").write_text(SCRIPT.format(**{k: f"  {v}" for k, v in places.items()}))
    words = ["train.py", "--as", "script", "--select", "GRAD101", "--device", "cpu"]
    done = CliRunner().invoke(cli.main, [*words, "-o", "report.json"])
    assert done.exit_code == code, done.output
    (result,) = json.loads(Path("report.json").read_text())["results"]
    assert result["status"] == "fail"
    if code == cli.OK:
        assert result["suppressed"] == (
            "features of last year (train.py:10); for the next task (train.py:12)"
        )
        assert "train.py:12: no check has the code, family or name 'GARD105'" in done.output
        assert "did you mean GRAD105?" in done.output


def test_a_remark_of_the_python_form_is_a_warning(tmp_path: Path) -> None:
    from nnaudit import api, config
    from nnaudit.loop.direct import DirectLoop
    from nnaudit.targets.target import load

    file = tmp_path / "target.py"
    file.write_text(
        "from torch import nn, randn\n"
        "def build_model():\n"
        "    return nn.Linear(4, 2)  # nnaudit: ignore because\n"
        "def train_loader():\n"
        "    return [(randn(8, 4), randn(8, 2)) for _ in range(4)]\n"
    )
    loop = DirectLoop(load(file), torch.device("cpu"), 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        api.audit_loop(loop, config.load({"select": "DATA101"}, start=tmp_path, environment={}))
    assert any("names no check: write ignore[CODE] reason" in str(w.message) for w in caught)
