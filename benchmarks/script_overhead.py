"""What driving an unmodified script costs: its steps under audit against its steps alone.

    python benchmarks/script_overhead.py [SCRIPT ...]

Each script is run several times by turns, alone and led by nnaudit, every time in a process of its
own, and the seconds from one optimizer step to the next are taken over the same number of steps,
with fresh batches from the script's own loader in both. The ratio of the medians carries over
between machines, seconds do not. The goal is below 1.15. The ratio of processor time stands beside
that of the clock: on a busy machine only the former means something, and only the latter counts
what it costs to hand control from one thread to another and back.
"""

from __future__ import annotations

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
SCRIPTS = ("digits_cnn_batchnorm.py", "char_transformer_causal.py", "shapes_unet.py")
ROUNDS = 5
WARM_UP, STEPS = 5, 40


class Enough(BaseException):
    """The script has taken as many steps as are needed."""


def main() -> None:
    """Print a row per script."""
    if sys.argv[1:2] == ["--once"]:
        ends = {"alone": alone, "led": led}[sys.argv[2]](Path(sys.argv[3]))
        print(*(statistics.median(_between(moments)) for moments in zip(*ends, strict=True)))
        return
    zoo = ROOT / "tests" / "zoo" / "healthy"
    paths = [Path(word) for word in sys.argv[1:]] or [zoo / name for name in SCRIPTS]
    print(
        "script                          alone ms/step  led ms/step  led/alone  of processor time"
    )
    for path in paths:
        print(row(path.resolve()), flush=True)


def row(path: Path) -> str:
    """Measure one script, alone and led by turns: a machine that slows down slows both."""
    pairs = [(_once("alone", path), _once("led", path)) for _ in range(ROUNDS)]
    bare, ours = (1000 * statistics.median(each[i][0] for each in pairs) for i in (0, 1))
    clock, processor = (
        statistics.median(ours_[i] / bare_[i] for bare_, ours_ in pairs) for i in (0, 1)
    )
    return f"{path.stem:30} {bare:14.2f} {ours:12.2f} {clock:10.2f} {processor:12.2f}"


def _once(how: str, path: Path) -> tuple[float, float]:
    """Return the median seconds of a step, of the clock and of the processor."""
    command = [sys.executable, __file__, "--once", how, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    clock, processor = done.stdout.split()[-2:]
    return float(clock), float(processor)


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def alone(path: Path) -> list[tuple[float, float]]:
    """Return when the steps of the script end, run as it is."""
    ends: list[tuple[float, float]] = []

    def stepped(optimizer: object, args: object, kwargs: object) -> None:
        ends.append(_now())
        if len(ends) > WARM_UP + STEPS:
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


def led(path: Path) -> list[tuple[float, float]]:
    """Return when the steps end that nnaudit has the script take."""
    from nnaudit.loop.script import ScriptLoop, run_script

    ends: list[tuple[float, float]] = []

    def drive(loop: ScriptLoop) -> None:
        while len(ends) <= WARM_UP + STEPS:
            for batch in islice(loop.batches(), WARM_UP + STEPS + 1 - len(ends)):
                loop.step(batch)
                ends.append(_now())

    with redirect_stdout(io.StringIO()):
        run_script(path, [], "cuda" if torch.cuda.is_available() else "cpu", 0, drive)
    return ends


def _between(ends: tuple[float, ...]) -> list[float]:
    return [after - before for before, after in pairwise(ends[WARM_UP:])]


if __name__ == "__main__":
    main()
