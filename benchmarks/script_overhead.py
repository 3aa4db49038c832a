"""What driving an unmodified script costs: its steps under audit against its steps alone.

    python benchmarks/script_overhead.py [--rounds N] [--steps N] [SCRIPT ...]

Each script is run several times by turns, alone and led by nnaudit, every time in a process of its
own, and the seconds from one optimizer step to the next are taken over the same number of steps,
with fresh batches from the script's own loader in both. The ratio of the medians carries over
between machines, seconds do not. The goal is below 1.15. The ratio of processor time stands beside
that of the clock: on a busy machine only the former means something, and only the latter counts
what it costs to hand control from one thread to another and back. On two quiet processors the clock
said 1.13 of steps of 4 ms, 1.05 to 1.08 of 6 to 8 ms, and 1.02 of the 170 ms of fashion_resnet18.
"""

from __future__ import annotations

import argparse
import io
import runpy
import statistics
import subprocess
import sys
import time
from contextlib import redirect_stdout
from itertools import islice, pairwise
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = (
    "tests/zoo/healthy/digits_cnn_batchnorm.py",
    "tests/zoo/healthy/char_transformer_causal.py",
    "tests/zoo/healthy/shapes_unet.py",
    "examples/fashion_resnet18.py",
)
WARM_UP = 5


class Enough(BaseException):
    """The script has taken as many steps as are needed."""


def main() -> None:
    """Print a row per script."""
    parser = argparse.ArgumentParser()
    parser.add_argument("scripts", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--once", choices=("alone", "led"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.once:
        ends = {"alone": alone, "led": led}[asked.once](asked.scripts[0], asked.steps)
        print(*(statistics.median(_between(moments)) for moments in zip(*ends, strict=True)))
        return
    print(
        "script                          alone ms/step  led ms/step  led/alone  of processor time"
    )
    for path in asked.scripts or [ROOT / name for name in SCRIPTS]:
        print(row(path.resolve(), asked.rounds, asked.steps), flush=True)


def row(path: Path, rounds: int, steps: int) -> str:
    """Measure one script, alone and led by turns: a machine that slows down slows both."""
    pairs = [(once("alone", path, steps), once("led", path, steps)) for _ in range(rounds)]
    bare, ours = (1000 * statistics.median(each[i][0] for each in pairs) for i in (0, 1))
    clock, processor = (
        statistics.median(ours_[i] / bare_[i] for bare_, ours_ in pairs) for i in (0, 1)
    )
    return f"{path.stem:30} {bare:14.2f} {ours:12.2f} {clock:10.2f} {processor:12.2f}"


def once(how: str, path: Path, steps: int) -> tuple[float, float]:
    """Return the median seconds of a step, of the clock and of the processor."""
    command = [sys.executable, __file__, "--once", how, "--steps", str(steps), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    clock, processor = done.stdout.split()[-2:]
    return float(clock), float(processor)


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def alone(path: Path, steps: int) -> list[tuple[float, float]]:
    """Return when the first ``steps`` steps of the script end, run as it is."""
    ends: list[tuple[float, float]] = []

    def stepped(optimizer: object, args: object, kwargs: object) -> None:
        ends.append(_now())
        if len(ends) > WARM_UP + steps:
            raise Enough

    handle = register_optimizer_step_post_hook(stepped)
    sys.argv = [str(path)]
    try:
        with redirect_stdout(io.StringIO()):
            runpy.run_path(str(path), run_name="__main__")
    except Enough:
        pass
    finally:
        handle.remove()
    return ends


def led(path: Path, steps: int) -> list[tuple[float, float]]:
    """Return when ``steps`` steps end that nnaudit has the script take."""
    from nnaudit.loop.script import ScriptLoop, run_script

    ends: list[tuple[float, float]] = []

    def drive(loop: ScriptLoop) -> None:
        while len(ends) <= WARM_UP + steps:
            for batch in islice(loop.batches(), WARM_UP + steps + 1 - len(ends)):
                loop.step(batch)
                ends.append(_now())

    with redirect_stdout(io.StringIO()):
        run_script(path, [], "cuda" if torch.cuda.is_available() else "cpu", 0, drive)
    return ends


def _between(ends: tuple[float, ...]) -> list[float]:
    return [after - before for before, after in pairwise(ends[WARM_UP:])]


if __name__ == "__main__":
    main()
