"""What an audit costs, as ratios measured in one run on one machine.

    python benchmarks/overhead.py [TARGET ...]

For each target: seconds per step of nnaudit's loop against seconds per step of the bare loop that a
user would write; and the whole audit against the bare time of the steps it took. Ratios carry over
between machines, seconds do not.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import torch

from nnaudit.api import audit
from nnaudit.loop.direct import DirectLoop
from nnaudit.state.snapshot import preserved
from nnaudit.targets import target as targets

ROUNDS = 7
STEPS = 10
EXAMPLES = ("digits_cnn.py", "diabetes_mlp.py")


def main() -> None:
    """Print a row per target."""
    here = Path(__file__).resolve().parent.parent / "examples"
    paths = [Path(word) for word in sys.argv[1:]] or [here / name for name in EXAMPLES]
    print("target                   bare ms/step  loop/bare  audit s  steps audit/bare")
    for path in paths:
        print(row(path))


def row(path: Path) -> str:
    """Measure one target."""
    loop = DirectLoop(targets.load(path), torch.device("cpu"), seed=0)
    batch = next(loop.batches())
    bare, ratio = _per_step(loop, batch)
    started = time.perf_counter()
    report = audit(targets.load(path), device="cpu")
    whole, steps = time.perf_counter() - started, report.totals.steps
    return (
        f"{path.stem:24} {1000 * bare:12.2f} {ratio:10.2f} {whole:8.1f} {steps:6d} "
        f"{whole / max(steps * bare, 1e-9):10.2f}"
    )


def _per_step(loop: DirectLoop, batch: object) -> tuple[float, float]:
    """Return the median bare seconds per step, and the median ratio of ours to it.

    The two are interleaved, so that a machine that slows down slows both.
    """
    bare, ratios = [], []
    for _ in range(ROUNDS):
        with preserved(loop.subjects):
            alone = _timed(lambda: _bare_step(loop, batch))
        with preserved(loop.subjects):
            ours = _timed(lambda: loop.step(batch))
        bare.append(alone)
        ratios.append(ours / alone)
    return statistics.median(bare), statistics.median(ratios)


def _timed(step: object) -> float:
    started = time.perf_counter()
    for _ in range(STEPS):
        step()  # type: ignore[operator]
    return (time.perf_counter() - started) / STEPS


def _bare_step(loop: DirectLoop, batch: object) -> None:
    (optimizer,) = loop.optimizers
    optimizer.zero_grad(set_to_none=True)
    fed = loop.split_batch(batch)
    loss = loop.loss(loop.model(*fed.args, **fed.kwargs), fed.target)
    loss.backward()
    optimizer.step()


if __name__ == "__main__":
    main()
