"""What the plug-in costs a pytest session that does not ask for it, in ratios of CPU time.

``python benchmarks/pytest_startup.py [RUNS]``: the same session of one empty test with the plug-in,
with it blocked, and with it blocked once more, which shows the noise. The least of each counts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

BLOCKED = ("-p", "no:nnaudit")
VARIANTS = {"plug-in": (), "without": BLOCKED, "without again": BLOCKED}


def cpu_seconds(folder: Path, words: tuple[str, ...]) -> float:
    """Return the CPU time of one session in ``folder``, in seconds."""
    before = os.times()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    after = os.times()
    return (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )


def main(runs: int) -> None:
    """Alternate the variants and print the least CPU time of each against ``without``."""
    best = dict.fromkeys(VARIANTS, float("inf"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "test_one.py").write_text("def test_one(): pass\n")
        for _ in range(runs):
            for variant, words in VARIANTS.items():
                best[variant] = min(best[variant], cpu_seconds(folder, words))
    for variant, seconds in best.items():
        print(f"{variant:14} {seconds:6.3f} s  x {seconds / best['without']:.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
