"""Audits every program of the zoo and counts what was caught, missed and alarmed falsely.

``python tests/zoo/run.py [--select GLOB] [--checks CODE ...] [--jobs N] [--form module|script]``

Each program is audited in a process of its own. In module form nnaudit drives the functions it
finds; in script form it runs the program as it is. What must come of it stands in the docstring:

- ``zoo: healthy``: nothing may fail;
- ``zoo: near CODE ...``: nothing may fail, though the named checks have reason to look twice;
- ``zoo: fails CODE [also CODE ...]`` or ``zoo: warns CODE [also ...]``: the first code must answer
  so; the codes after ``also`` may fail as a consequence, no other may. ``crashes`` at the end says
  that the program raises in training, so that other checks, or none, can answer, ``missed`` that
  the fault is known not to be found for certain: it counts as what it is, and does not make the
  run fail.

A line ``zoo script: ...`` stands in its place where the script form must answer otherwise.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TIMEOUT = 900.0
"""Seconds after which a program's audit is given up."""


@dataclass(frozen=True)
class Expected:
    """What the audit of a program must say.

    Attributes:
        kind: ``healthy``, ``near``, ``fails`` or ``warns``.
        codes: the check that must answer so; for a near miss those that must not be fooled.
        also: checks that may fail or warn as a consequence.
        crashes: the program raises in training.
        missed: the fault is known not to be found.
        needs: a folder without which it cannot run.
    """

    kind: str
    codes: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    crashes: bool = False
    missed: bool = False
    needs: str = ""

    @property
    def faulty(self) -> bool:
        """Whether something must be found."""
        return self.kind in ("fails", "warns")

    def __str__(self) -> str:
        return " ".join((self.kind, *self.codes))


@dataclass
class Outcome:
    """The audit of one program: every check's answer, or why there is none."""

    program: str
    results: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    steps: int = 0
    crash: str = ""

    def with_status(self, *statuses: str) -> list[dict[str, Any]]:
        """Return the answers that have one of ``statuses``."""
        return [result for result in self.results if result["status"] in statuses]

    def status_of(self, code: str) -> str:
        """Return the status of the check ``code``; ``absent`` when it was not asked."""
        return next((r["status"] for r in self.results if r["code"] == code), "absent")


def programs(pattern: str = "*") -> list[Path]:
    """Return the zoo's files whose ``folder/name`` matches the glob, healthy ones first."""
    found = [
        p for folder in ("healthy", "near", "faults") for p in sorted((HERE / folder).glob("*.py"))
    ]
    return [p for p in found if p.relative_to(HERE).with_suffix("").match(pattern)]


def expected(path: Path, form: str = "module") -> Expected:
    """Read the ``zoo:`` line of a program's docstring, ``zoo script:`` first in script form.

    Raises:
        ValueError: there is none, or it cannot be understood.
    """
    lines = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()
    said = dict(line.split(": ", 1) for line in lines if line.startswith(("zoo:", "zoo script:")))
    words = said.get(f"zoo {form}", said.get("zoo", "")).split()
    needs = next((x.removeprefix("needs:").strip() for x in lines if x.startswith("needs:")), "")
    if not words or words[0] not in ("healthy", "near", "fails", "warns"):
        raise ValueError(f"{path}: the docstring has no `zoo:` line")
    crashes, missed = "crashes" in words, "missed" in words
    words = [word for word in words if word not in ("crashes", "missed")]
    cut = words.index("also") if "also" in words else len(words)
    codes = tuple(words[1:cut])
    if words[0] in ("fails", "warns") and len(codes) != 1:
        raise ValueError(f"{path}: a fault names one check")
    return Expected(words[0], codes, tuple(words[cut + 1 :]), crashes, missed, needs)


def problems(outcome: Outcome, wanted: Expected) -> list[str]:
    """Return, in words, everything in which ``outcome`` is not what is ``wanted``."""
    if outcome.crash and wanted.crashes:
        return []
    if outcome.crash:
        return [f"the audit crashed: {outcome.crash}"]
    found = []
    if wanted.faulty:
        code, status = wanted.codes[0], outcome.status_of(wanted.codes[0])
        seen = status == wanted.kind.removesuffix("s")
        # What depends on the time a check has may be found on a faster machine.
        if not (seen or wanted.missed):
            found.append(f"missed: {code} is {status}")
    allowed = {*wanted.also, *wanted.codes} if wanted.faulty else set()
    found += [
        f"false alarm: {r['code']}: {r['message']}"
        for r in outcome.with_status("fail")
        if r["code"] not in allowed
    ]
    if not wanted.crashes:
        found += [f"error: {r['code']}: {r['message']}" for r in outcome.with_status("error")]
    return found


def audit(
    path: Path,
    *,
    form: str = "module",
    threads: int = 1,
    checks: Iterable[str] = (),
    seed: int = 0,
) -> Outcome:
    """Audit one program in a process of its own, with ``threads`` threads."""
    command = [sys.executable, __file__, "--child", str(path), "--seed", str(seed)]
    command += ["--form", form, *(["--checks", *checks] if checks else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    name, started = str(path.relative_to(HERE)), time.perf_counter()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return Outcome(name, seconds=TIMEOUT, crash=f"no end after {TIMEOUT:g} s")
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        tail = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return Outcome(name, seconds=seconds, crash=tail[0])
    answer = json.loads(done.stdout.splitlines()[-1])
    return Outcome(name, answer["results"], seconds, answer["steps"])


def child(path: Path, form: str, checks: Iterable[str], seed: int) -> None:
    """Audit the program at ``path`` and print its results as one line of JSON."""
    answer = (
        _by_command_line(path, checks, seed)
        if form == "script"
        else _in_process(path, checks, seed)
    )
    print(json.dumps(answer))


def _in_process(path: Path, checks: Iterable[str], seed: int) -> dict[str, Any]:
    import torch

    from nnaudit.checks.registry import Registry
    from nnaudit.context import Audit
    from nnaudit.loop.direct import DirectLoop
    from nnaudit.runner import run_checks
    from nnaudit.targets import load

    warnings.simplefilter("ignore")  # what the program warns of is for its author
    registry = Registry.load()
    for broken in registry.broken:
        raise SystemExit(f"the checks of {broken.name} cannot be loaded: {broken.reason}")
    loop = DirectLoop(load(path), torch.device("cpu"), seed)
    results = [
        result.model_dump(mode="json", exclude={"evidence"})
        for result in run_checks(registry.select(checks), Audit(loop, seed=seed))
    ]
    return {"results": results, "steps": loop.steps_taken}


def _by_command_line(path: Path, checks: Iterable[str], seed: int) -> dict[str, Any]:
    from click.testing import CliRunner

    from nnaudit.cli import main as nnaudit

    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "report.json")
        words = ["check", str(path), "--as", "script", "--device", "cpu", "--seed", str(seed)]
        words += ["--output-format", "json", "--output-file", str(written)]
        words += [word for code in checks for word in ("--select", code)]
        done = CliRunner().invoke(nnaudit, words)
        if not written.exists():
            raise SystemExit(done.output or f"exit status {done.exit_code}")
        told = json.loads(written.read_text())
    told = told["reports"][0] if "reports" in told else told
    results = [{k: v for k, v in r.items() if k != "evidence"} for r in told["results"]]
    return {"results": results, "steps": told["totals"]["steps"]}


def report(outcomes: dict[Path, Outcome], form: str) -> int:
    """Print the table of what was caught and what alarmed falsely; return the exit status."""
    from nnaudit.stats import clopper_pearson

    counts: Counter[str] = Counter()
    by_code: dict[str, Counter[str]] = {}
    for path, outcome in outcomes.items():
        wanted = expected(path, form)
        verdict = _verdict(outcome, wanted)
        group = "faults" if wanted.faulty else wanted.kind
        counts[f"{group}: programs"] += 1
        counts[f"{group}: {verdict}"] += 1
        if wanted.faulty:
            by_code.setdefault(wanted.codes[0], Counter())[verdict] += 1
    print(f"\n{'code':9} {'right code':>10} {'otherwise':>10} {'missed':>7}")
    for code, row in sorted(by_code.items()):
        print(f"{code:9} {row['right code']:10} {row['other code']:10} {row['missed']:7}")
    print()
    for group, verdicts in {
        "faults": ("right code", "other code", "missed"),
        "near": ("clean", "warned", "false alarm"),
        "healthy": ("clean", "warned", "false alarm"),
    }.items():
        n = counts[f"{group}: programs"]
        for verdict in verdicts if n else ():
            k = counts[f"{group}: {verdict}"]
            low, high = clopper_pearson(k, n)
            print(f"{group:8} {verdict:12} {k:3} of {n:3}  95 % interval {low:.3f} to {high:.3f}")
    bad = {
        path: found for path, o in outcomes.items() if (found := problems(o, expected(path, form)))
    }
    for path, found in bad.items():
        print(f"\n{path.relative_to(HERE)}")
        for line in found:
            print(f"    {line}")
    seconds = sum(outcome.seconds for outcome in outcomes.values())
    steps = sum(outcome.steps for outcome in outcomes.values())
    print(f"\n{len(outcomes)} programs, {seconds:.0f} s, {steps} steps, {len(bad)} with problems")
    return 1 if bad else 0


def _verdict(outcome: Outcome, wanted: Expected) -> str:
    if not wanted.faulty:
        if outcome.with_status("fail") or outcome.crash:
            return "false alarm"
        return "warned" if outcome.with_status("warn") else "clean"
    if outcome.status_of(wanted.codes[0]) == wanted.kind.removesuffix("s"):
        return "right code"
    told = outcome.with_status("fail") or (outcome.crash and wanted.crashes)
    return "other code" if told else "missed"


def main() -> int:
    """Run the zoo; 1 when a program is not answered as it should be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--select", default="*", help="glob on folder/name, e.g. 'faults/loss*'")
    parser.add_argument("--checks", nargs="*", default=[], help="codes or families to ask")
    parser.add_argument("--form", choices=["module", "script"], default="module")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write every answer here")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.form, args.checks, args.seed)
        return 0
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    paths = [path for path in programs(args.select) if _available(path)]
    outcomes: dict[Path, Outcome] = {}

    def run(path: Path) -> tuple[Path, Outcome]:
        return path, audit(
            path, form=args.form, threads=threads, checks=args.checks, seed=args.seed
        )

    with ThreadPoolExecutor(args.jobs) as pool:
        for path, outcome in pool.map(run, paths):
            outcomes[path] = outcome
            print(_line(outcome, expected(path, args.form)), flush=True)
    if args.json:
        args.json.write_text(
            json.dumps([asdict(outcome) for outcome in outcomes.values()], indent=1)
        )
    return report(outcomes, args.form)


def _available(path: Path) -> bool:
    needs = expected(path).needs
    return not needs or Path(needs).exists()


def _line(outcome: Outcome, wanted: Expected) -> str:
    loud = outcome.with_status("fail", "warn", "error", "inconclusive", "note")
    fired = " ".join(f"{r['code']}:{r['status']}" for r in loud) or "-"
    mark = "ok " if not problems(outcome, wanted) else "BAD"
    where = f"{outcome.program:52} {outcome.seconds:5.0f} s {outcome.steps:6} steps"
    return f"{mark} {where}  [{wanted}]  {outcome.crash or fired}"


if __name__ == "__main__":
    sys.exit(main())
