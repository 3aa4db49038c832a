"""Audits every program of the zoo and counts what was caught, missed and alarmed falsely.

``python tests/zoo/run.py [--select GLOB] [--checks CODE ...] [--quick] [--jobs N]
[--form module|script|both]``

Each program is audited in a process of its own, forked from one that has imported torch and nnaudit
and done nothing with them: what importing costs is paid once. In module form nnaudit drives the
functions it finds; in script form it runs the program as it is; with both, the checks of the
headline battery must also answer alike. What must come of it stands in the docstring:

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
import gc
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
HEADLINE = (
    "DATA101", "DATA102", "DATA104", "INIT101", "LOSS101", "LOSS102", "GRAD102", "GRAD106",
    "MODE101", "NORM101", "SEED101", "SEED102", "FIT101", "FIT105", "FIT106",
)  # fmt: skip
"""The checks whose verdict must not depend on the form in which a program is handed over."""

TRAINING = ("FIT101", "FIT105", "FIT106")
"""Those of them that train."""

CHEAP = (
    "GRAD101", "GRAD103", "GRAD104", "GRAD107", "GRAD108", "LOSS103", "LOSS104", "MODE102",
    "MODE103", "STEP101", "STEP102", "STEP103", "STEP104", "STEP105", "STEP106", "STEP107",
)  # fmt: skip
"""What else is worth asking in script form, as it hangs on the loop and costs little."""

FORMS = ("module", "script")

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
        apart: a line of its own says so for this form, which differs from the other.
        needs: a folder without which it cannot run.
    """

    kind: str
    codes: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    crashes: bool = False
    missed: bool = False
    apart: bool = False
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
    apart = f"zoo {form}" in said
    return Expected(words[0], codes, tuple(words[cut + 1 :]), crashes, missed, apart, needs)


def problems(outcome: Outcome, wanted: Expected) -> list[str]:
    """Return, in words, everything in which ``outcome`` is not what is ``wanted``.

    A check that was not asked is not held to anything, and one that is known to miss its fault may
    find it: what depends on the time it has can succeed on a faster machine.
    """
    if outcome.crash and wanted.crashes:
        return []
    if outcome.crash:
        return [f"the audit crashed: {outcome.crash}"]
    found = []
    if wanted.faulty and not wanted.missed:
        code, status = wanted.codes[0], outcome.status_of(wanted.codes[0])
        if status not in ("absent", wanted.kind.removesuffix("s")):
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


def differences(module: Outcome, script: Outcome, may: Iterable[str] = ()) -> list[str]:
    """Return, in words, where the headline battery judges a program differently in script form.

    What one form does not offer, or has too little evidence for, is no verdict; a note is none
    against the program. The checks that ``may`` answer so, as a consequence, need not in both.
    """
    judged = {"pass": "pass", "note": "pass", "warn": "warn", "fail": "fail"}
    free = set(may)
    found = []
    for code in HEADLINE:
        one, other = (judged.get(outcome.status_of(code)) for outcome in (module, script))
        if one and other and one != other and code not in free:
            found.append(f"forms differ: {code}: {one} in module form, {other} in script form")
    return found


@dataclass(frozen=True)
class Wish:
    """What to ask a program, and how.

    Attributes:
        form: ``module`` or ``script``.
        checks: the codes or families to ask; all when empty.
        quick: leave out the checks that train, except those named in ``extend``.
        seed: of the audit.
    """

    form: str = "module"
    checks: tuple[str, ...] = ()
    quick: bool = False
    extend: tuple[str, ...] = ()
    seed: int = 0


def quick_wish(wanted: Expected, form: str = "module") -> Wish:
    """Return what is enough to ask in each change's tests.

    That nothing alarms falsely is shown by all checks on the healthy programs and the near misses.
    A fault must be found by its own check, and no check that is quick may name another cause. The
    checks that train take nine tenths of a faulty program's time, since what cannot be learned is
    tried again and again: they are asked where they are the ones to find it, and of everything by
    the whole run, ``python tests/zoo/run.py``. In script form the same holds of the headline
    battery and the checks that are cheap; what a program shows as a script only is asked, too.
    """
    if form == "module":
        return Wish(quick=True, extend=wanted.codes) if wanted.faulty else Wish()
    left_out = set(TRAINING) - set(wanted.codes) if wanted.faulty else set()
    asked = tuple(code for code in HEADLINE if code not in left_out) + CHEAP
    return Wish("script", asked + wanted.codes if wanted.apart else asked)


def consequences(path: Path) -> set[str]:
    """Return the checks that may answer otherwise in one form than in the other.

    Those that may answer to the fault as a consequence, and its own where only one form has it.
    """
    wanted = [expected(path, form) for form in FORMS]
    own = {code for each in wanted if each.faulty for code in each.codes}
    only_one = len({each.faulty for each in wanted}) > 1
    return {code for each in wanted for code in each.also} | (own if only_one else set())


class Nursery:
    """Where programs are audited, one at a time, each in a fork of a process that is ready to.

    That process has no thread besides its own and has used neither torch nor numpy, so a fork of it
    is as good as a new one. It ends with its standard input, and so with whoever made it.
    """

    def __init__(self, *, threads: int = 1) -> None:
        """Each audit may use ``threads`` threads."""
        count = str(threads)
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count},
        )

    def audit(self, path: Path, wish: Wish) -> Outcome:
        """Audit one program."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps([str(path), asdict(wish)]), file=self._process.stdin, flush=True)
        return Outcome(str(path.relative_to(HERE)), **json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        with self._process:  # leaving closes its input and waits
            pass


def nursery() -> None:
    """Answer each wish that comes on standard input, a line each, with a line of JSON."""
    _import_ahead()
    gc.freeze()  # else the first collection in a child would copy every page of the parent
    for line in sys.stdin:
        started = time.perf_counter()
        path, wish = json.loads(line)
        answer = _in_a_fork(Path(path), Wish(**wish))
        print(json.dumps({**answer, "seconds": time.perf_counter() - started}), flush=True)


def _import_ahead() -> None:
    from nnaudit.checks.registry import Registry

    Registry.load()
    importlib.import_module("nnaudit.loop.script")
    importlib.import_module("torch._dynamo")  # which the first step of an optimizer would import
    for name in ("torchvision", "sklearn.datasets", "sklearn.model_selection"):
        with suppress(ImportError):
            importlib.import_module(name)
    assert threading.active_count() == 1, "a fork would lose the other threads"


def _in_a_fork(path: Path, wish: Wish) -> dict[str, Any]:
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as cried:
        pid = os.fork()
        if pid == 0:
            _live(path, wish, said.fileno(), cried.fileno())
        status = _waited_for(pid)
        said.seek(0)
        cried.seek(0)
        if status is None:
            return {"crash": f"no end after {TIMEOUT:g} s"}
        if status != 0:
            return {"crash": (cried.read().strip().splitlines() or [f"exit status {status}"])[-1]}
        answer: dict[str, Any] = json.loads(said.read().splitlines()[-1])
        return answer


def _live(path: Path, wish: Wish, stdout: int, stderr: int) -> NoReturn:
    """Do what the forked process is there for, and end it."""
    import numpy as np

    os.setsid()  # what the program starts can be ended with it
    nothing = os.open(os.devnull, os.O_RDONLY)
    for ours, standard in ((nothing, 0), (stdout, 1), (stderr, 2)):
        os.dup2(ours, standard)
    np.random.seed()  # else every fork draws the same; Python's own generator sees to it itself
    code = 1
    try:
        print(json.dumps(answers(path, wish)))
        code = 0
    except SystemExit as error:
        print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _waited_for(pid: int) -> int | None:
    """Return the exit status of the child ``pid``; None when it had to be ended."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            _end_group(pid)
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    _end_group(pid)
    os.waitpid(pid, 0)
    return None


def _end_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def answers(path: Path, wish: Wish) -> dict[str, Any]:
    """Audit the program at ``path`` in this process, in whose main thread a script must run."""
    import torch

    from nnaudit.checks.registry import Registry
    from nnaudit.context import Audit
    from nnaudit.engine.runner import run_checks
    from nnaudit.loop.base import Loop
    from nnaudit.loop.direct import DirectLoop
    from nnaudit.loop.script import run_script
    from nnaudit.targets.target import load

    warnings.simplefilter("ignore")  # what the program warns of is for its author
    registry = Registry.load()
    for broken in registry.broken:
        raise SystemExit(f"the checks of {broken.name} cannot be loaded: {broken.reason}")
    battery = registry.select(wish.checks, extend=wish.extend, quick=wish.quick)

    def ask(loop: Loop) -> dict[str, Any]:
        results = [
            result.model_dump(mode="json", exclude={"evidence"})
            for result in run_checks(battery, Audit(loop, seed=wish.seed))
        ]
        return {"results": results, "steps": loop.steps_taken}

    if wish.form == "script":
        with redirect_stdout(io.StringIO()):
            return run_script(path, [], "cpu", wish.seed, ask)
    return ask(DirectLoop(load(path), torch.device("cpu"), wish.seed))


def report(outcomes: dict[Path, Outcome], form: str) -> int:
    """Print the table of what was caught and what alarmed falsely; return the exit status."""
    from nnaudit.stats import clopper_pearson

    counts: Counter[str] = Counter()
    by_code: dict[str, Counter[str]] = {}
    for path, outcome in outcomes.items():
        wanted = expected(path, form)
        verdict = _verdict(outcome, wanted)
        if verdict == "not asked":
            counts[verdict] += 1
            continue
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
    if counts["not asked"]:
        print(f"not asked: {counts['not asked']} faults, whose checks were left out")
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
    status = outcome.status_of(wanted.codes[0])
    if status == "absent" and not outcome.crash:
        return "not asked"
    if status == wanted.kind.removesuffix("s"):
        return "right code"
    told = outcome.with_status("fail") or (outcome.crash and wanted.crashes)
    return "other code" if told else "missed"


def main() -> int:
    """Run the zoo; 1 when a program is not answered as it should be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--select", default="*", help="glob on folder/name, e.g. 'faults/loss*'")
    parser.add_argument("--checks", nargs="*", default=[], help="codes or families to ask")
    parser.add_argument("--quick", action="store_true", help="ask only what CI asks")
    parser.add_argument("--form", choices=[*FORMS, "both"], default="module")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write every answer here")
    parser.add_argument("--nursery", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.nursery:
        nursery()
        return 0
    paths = [path for path in programs(args.select.lower()) if _available(path)]
    if not paths:
        parser.error(f"no program of the zoo matches {args.select!r}")
    outcomes = {
        form: _audited(paths, form, args)
        for form in (FORMS if args.form == "both" else (args.form,))
    }
    if args.json:
        every = [
            {"form": form, **asdict(outcome)}
            for form, found in outcomes.items()
            for outcome in found.values()
        ]
        args.json.write_text(json.dumps(every, indent=1))
    bad = [report(found, form) for form, found in outcomes.items()]
    if args.form == "both":
        for path in paths:
            both = (outcomes[form][path] for form in FORMS)
            for line in differences(*both, consequences(path)):
                bad.append(1)
                print(f"{path.relative_to(HERE)}: {line}")
    return max(bad)


def _audited(paths: list[Path], form: str, args: argparse.Namespace) -> dict[Path, Outcome]:
    """Audit the programs in ``form``, several at a time, and print a line for each."""
    outcomes: dict[Path, Outcome] = {}
    nurseries: SimpleQueue[Nursery] = SimpleQueue()
    for _ in range(args.jobs):
        nurseries.put(Nursery(threads=max(1, (os.cpu_count() or 1) // args.jobs)))

    def run(path: Path) -> tuple[Path, Outcome]:
        free = nurseries.get()
        whole = Wish(form, tuple(args.checks))
        asked = quick_wish(expected(path, form), form) if args.quick else whole
        outcome = free.audit(path, replace(asked, seed=args.seed))
        nurseries.put(free)
        return path, outcome

    with ThreadPoolExecutor(args.jobs) as pool:
        for path, outcome in pool.map(run, paths):
            outcomes[path] = outcome
            print(_line(outcome, expected(path, form), args.checks), flush=True)
    for _ in range(args.jobs):
        nurseries.get().close()
    return outcomes


def _available(path: Path) -> bool:
    needs = expected(path).needs
    return not needs or Path(needs).exists()


def _line(outcome: Outcome, wanted: Expected, asked: list[str]) -> str:
    """Say how a program was answered: in full by the checks that were asked by their codes."""
    loud = outcome.with_status("fail", "warn", "error", "inconclusive", "note")
    loud = [r for r in outcome.results if r in loud or r["code"] in asked]
    fired = " ".join(f"{r['code']}:{r['status']}" for r in loud) or "-"
    mark = "ok " if not problems(outcome, wanted) else "BAD"
    where = f"{outcome.program:52} {outcome.seconds:5.0f} s {outcome.steps:6} steps"
    return f"{mark} {where}  [{wanted}]  {outcome.crash or fired}"


if __name__ == "__main__":
    sys.exit(main())
