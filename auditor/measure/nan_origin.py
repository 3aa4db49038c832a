"""The operation in which a gradient first becomes NaN."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from nnaudit.errors import UserCodeError, is_user
from nnaudit.loop.base import Loop
from nnaudit.report import Location
from nnaudit.state.snapshot import preserved

_FUNCTION = re.compile(r"Function '(\w+?)Backward\d*' returned nan values")
_LINE = re.compile(r'File "([^"]+)", line (\d+)')


@dataclass(frozen=True)
class NanOrigin:
    """The operation whose backward pass made the first NaN.

    Attributes:
        operation: as autograd names it: ``Sqrt``, ``Pow``, ``Div``.
        location: the user's line that called it in the forward pass; None where unknown.
    """

    operation: str
    location: Location | None


def nan_origin(loop: Loop, some: Iterable[Any]) -> NanOrigin | None:
    """Take steps on ``some`` batches, the last one with autograd's anomaly detection.

    None where no gradient becomes NaN: it may be infinite. The loop's state is put back.
    """
    *before, last = some
    with preserved(loop.subjects), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            for batch in before:
                loop.step(batch)
            with torch.autograd.set_detect_anomaly(True):
                loop.step(last)
        except UserCodeError as error:
            found = _FUNCTION.search(str(error.__cause__ or error)) or _FUNCTION.search(str(error))
            return NanOrigin(found[1], _user_line(told)) if found else None
    return None


def _user_line(told: list[warnings.WarningMessage]) -> Location | None:
    """Return the innermost line of the user's in what autograd tells of the forward pass."""
    for warning in told:
        text = str(warning.message)
        lines = [(file, int(line)) for file, line in _LINE.findall(text) if is_user(file)]
        if "Error detected in" in text and lines:
            return Location(file=lines[-1][0], line=lines[-1][1])
    return None
