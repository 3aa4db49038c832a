"""What whole audits cost and where it goes: seconds of processor time and steps, by check.

    python benchmarks/audit_cost.py [--top N] [--out FILE] [--against FILE] [TARGET ...]

Each target (default: the examples and their broken twins) is audited in full, in the form that
nnaudit chooses, in a process of its own. Processor seconds do not depend on what else the machine
does, and hardly on the number of threads; seconds of the clock do, and are shown beside them. What
a check costs includes the probes that it is the first to ask for. ``--out`` keeps the numbers and
answers as JSON; ``--against`` holds them against such a file: the ratio, and every answer that is
another than it was.

The ratio is what the audit cost, imports included, over what as many steps cost the script when
nobody audits it, batches included. On two busy processors, with one thread, it was 2.0 for
digits_cnn (13 s of processor time), 5.0 for diabetes_mlp (10 s), 1.4 for char_transformer (49 s)
and 1.3 for fashion_resnet18 (68 s).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from script_overhead import once as steps_of

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Print a line per target, and its dearest checks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("targets", nargs="*", type=Path)
    parser.add_argument("--top", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--steps", type=int, default=20, help="of the script alone")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.once:
        print("\n" + json.dumps(measured(asked.targets[0])))
        return
    examples = ROOT / "examples"
    targets = asked.targets or sorted([*examples.glob("*.py"), *examples.glob("broken/*.py")])
    before = json.loads(asked.against.read_text()) if asked.against else {}
    found: dict[str, Any] = {}
    print(
        "target                                 cpu s  clock s   steps  audit/bare  "
        "dearest checks, cpu s"
    )
    for target in targets:
        name = f"{target.resolve().parent.name}/{target.stem}"
        found[name] = once(target.resolve())
        found[name]["bare"] = steps_of("alone", target.resolve(), asked.steps)[1]
        print(line(name, found[name], asked.top), flush=True)
        if name in before:
            print(compared(before[name], found[name]), flush=True)
        if asked.out:
            asked.out.write_text(json.dumps(found, indent=1))


def once(path: Path) -> dict[str, Any]:
    """Audit ``path`` in a process of its own."""
    command = [sys.executable, __file__, "--once", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measured(path: Path) -> dict[str, Any]:
    """Audit ``path`` here; return what was spent in all and by check."""
    from nnaudit.engine import worker
    from nnaudit.engine.job import Answered, Asking, Event, Finished, Job
    from nnaudit.settings import Settings

    checks: list[dict[str, Any]] = []
    total, began = {"steps": 0}, time.perf_counter()
    since = 0.0

    def emit(event: Event) -> None:
        nonlocal since
        if isinstance(event, Asking):
            since = processor()
        elif isinstance(event, Answered):
            result = event.result
            checks.append(
                {
                    "code": result.code,
                    "status": result.status.value,
                    "message": result.message,
                    "steps": result.steps,
                    "cpu": processor() - since,
                }
            )
        elif isinstance(event, Finished):
            total["steps"] = event.steps

    worker._work(Job(path=str(path), settings=Settings()), emit)
    clock = time.perf_counter() - began
    return {"cpu": processor(), "clock": clock, "steps": total["steps"], "checks": checks}


def processor() -> float:
    """Seconds of processor time, children that have ended (a loader's workers) included."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def line(name: str, found: dict[str, Any], top: int) -> str:
    """Put one audit into a line."""
    dearest = sorted(found["checks"], key=lambda check: -check["cpu"])[:top]
    shown = "  ".join(f"{c['code']} {c['cpu']:.1f} ({c['steps']})" for c in dearest)
    ratio = found["cpu"] / (found["steps"] * found["bare"])
    spent = f"{found['cpu']:7.1f} {found['clock']:8.1f} {found['steps']:7d} {ratio:11.2f}"
    return f"{name:36} {spent}  {shown}"


def compared(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Say how much less was spent, and which answers differ."""
    then = {check["code"]: check["status"] for check in before["checks"]}
    others = [
        f"{check['code']} {then[check['code']]} -> {check['status']}"
        for check in after["checks"]
        if then.get(check["code"], check["status"]) != check["status"]
    ]
    said = f"    cpu x {after['cpu'] / before['cpu']:.2f} of {before['cpu']:.1f} s, "
    said += f"steps x {after['steps'] / max(before['steps'], 1):.2f}"
    return f"{said}; answers: {', '.join(others) or 'the same'}"


if __name__ == "__main__":
    main()
