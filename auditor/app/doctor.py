"""What an audit would find on this machine, and what each gap means. Must not import torch.

It is found out by doing: the template of a target is loaded in a child process, as an audit would.
"""

from __future__ import annotations

import os
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path

from nnaudit._version import __version__
from nnaudit.checks import GROUP
from nnaudit.checks.catalog import OURS
from nnaudit.engine.job import Job
from nnaudit.engine.record import Record, RefusedError, documentation_address
from nnaudit.packages import version_of
from nnaudit.processes import supervisor
from nnaudit.settings import Settings

FRAMEWORKS = (
    "lightning", "pytorch-lightning", "transformers", "accelerate", "pytorch-ignite", "skorch",
    "fastai",
)  # fmt: skip
"""Distributions whose own training loops are understood."""

EXTRAS = {
    "torchvision": "compare your preprocessing with that of its published weights (GEN104)",
    "pytest": "run every check as a test, by `pytest --nnaudit`",
    "libcst": "mend a line of your source, by `nnaudit fix`",
    "nbformat": "audit a notebook, as in `nnaudit train.ipynb`",
}
"""Distributions that are optional, and what nnaudit can do with them."""

_INDENT = 16


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: its state in a word, and what follows from it."""

    name: str
    state: str
    meaning: str = ""
    sound: bool = True


def examine(settings: Settings) -> list[Finding]:
    """Look at this machine as an audit with ``settings`` would find it."""
    return [
        Finding("nnaudit", __version__, f"runs in {sys.prefix}"),
        *_elsewhere(os.environ, sys.prefix),
        *_child(settings),
        *_packages(),
        *_plug_ins(),
        _documentation(settings),
    ]


def _elsewhere(environment: Mapping[str, str], prefix: str) -> Iterator[Finding]:
    """Tell of an environment that is active while nnaudit runs in another one."""
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        active = environment.get(name)
        if active and Path(active).resolve() != Path(prefix).resolve():
            yield Finding(
                "environment",
                "another one",
                f"{active} is active, but nnaudit runs in {prefix} and sees the packages there: "
                "install it into the environment that trains, with `python -m pip install nnaudit`",
                sound=False,
            )
            return


def _child(settings: Settings) -> Iterator[Finding]:
    """Load a target in a child process; what comes back is what an audit would run on."""
    template = files("nnaudit.app").joinpath("templates", "target.py.txt").read_text("utf-8")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "target.py")
        target.write_text(template, "utf-8")
        try:
            record = supervisor.load(Job(path=str(target), form="module", settings=settings))
        except RefusedError as error:
            why = " ".join(filter(None, (str(error), *error.detail.strip().splitlines()[-1:])))
            yield Finding("audit", "not possible", why, sound=False)
            return
    yield from _environment(record)


def _environment(record: Record) -> Iterator[Finding]:
    assert record.started is not None
    here = record.started.environment
    yield Finding("python", here.python, sys.executable)
    yield Finding("torch", here.torch)
    no_gpu = "torch sees no GPU; what needs one, such as PERF103, is skipped"
    yield Finding("device", here.device, no_gpu if here.device == "cpu" else here.device_name)
    yield Finding(
        "your files",
        here.sandbox,
        record.protection_remark or "whatever the program writes goes to a scratch folder",
        sound=not record.protection_remark,
    )


def _packages() -> Iterator[Finding]:
    present = [f"{name} {found}" for name in FRAMEWORKS if (found := version_of(name))]
    yield Finding(
        "frameworks",
        ", ".join(present) or "none",
        "their own training loops are audited" if present else "plain training loops are audited",
    )
    for name, use in EXTRAS.items():
        found = version_of(name)
        yield Finding(name, found or "not installed", f"{'can' if found else 'cannot'} {use}")


def _plug_ins() -> Iterator[Finding]:
    for point in entry_points(group=GROUP):
        if point.name != OURS:
            yield Finding("plug-in", point.name, f"checks from {point.value}")


def _documentation(settings: Settings) -> Finding:
    if address := documentation_address(settings):
        return Finding("docs", address, "codes in reports are links to it")
    instead = "codes in reports are no links (setting docs-url); `nnaudit rule CODE` explains them"
    return Finding("docs", "no address", instead)


def lines(findings: Sequence[Finding], width: int) -> Iterator[str]:
    """Yield the findings as text of ``width`` columns, their meaning beside their names."""
    for found in findings:
        mark = " " if found.sound else "!"
        yield from textwrap.wrap(
            f"{found.state}: {found.meaning}" if found.meaning else found.state,
            max(width, 2 * _INDENT),
            initial_indent=f"{mark} {found.name}".ljust(_INDENT),
            subsequent_indent=" " * _INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )
