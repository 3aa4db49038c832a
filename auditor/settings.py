"""What can be said of how an audit is to be done; where it is said is :mod:`nnaudit.config`.

Must not import torch: the command line reads settings before it starts anything.
"""

from __future__ import annotations

import inspect
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

LONGEST = 366 * 24 * 3600.0
"""Seconds of the longest duration that is accepted: what waits for longer cannot be waited for."""

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def seconds(value: Any) -> Any:
    """Return a duration such as ``60``, ``"90s"``, ``"2m"`` or ``"1.5h"`` in seconds.

    Raises:
        ValueError: it is none of these, or not positive.
    """
    if value is None or isinstance(value, bool):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h)?\s*", str(value))
    if not match:
        raise ValueError(f"{value!r} is not a duration: write 60s, 2m or 1h")
    duration = float(match[1]) * _UNITS[match[2] or ""]
    if not 0 < duration <= LONGEST:
        raise ValueError("a duration must be longer than zero and no longer than a year")
    return duration


def words(value: Any) -> Any:
    """Return a comma-separated string as a tuple of its words; other values as they are."""
    if isinstance(value, str):
        return tuple(word for word in re.split(r"[,\s]+", value) if word)
    return value


_DEVICES = r"auto|cpu|mps|xpu|cuda(:\d+)?"


def device_name(value: Any) -> Any:
    """Return the name of a device.

    Raises:
        ValueError: it is none that torch has.
    """
    if not re.fullmatch(_DEVICES, str(value)):
        raise ValueError("a device is auto, cpu, cuda, cuda:1, mps or xpu")
    return value


_ADDRESS = r"^((https?|file)://\S+)?$"


def web_address(value: Any) -> Any:
    """Return an address of pages, without a slash at its end.

    Raises:
        ValueError: a browser would not open it.
    """
    if not re.fullmatch(_ADDRESS, str(value)):
        raise ValueError("an address begins with https://, http:// or file://")
    return str(value).rstrip("/")


_TEXT: dict[str, Any] = {"type": "string"}

Duration = Annotated[
    float,
    BeforeValidator(seconds),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "maximum": LONGEST},
                {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*(s|m|min|h)?\s*$"},
            ]
        }
    ),
]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Words = Annotated[
    tuple[str, ...],
    BeforeValidator(words),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]}),
]


class Settings(BaseModel):
    """How an audit is to be done.

    Attributes:
        targets: what to audit when the command line names nothing, relative to the file's folder;
            a script's own words follow a ``--``, as in ``train.py -- --epochs 1``.
        select: ask only these: codes, families or names of checks.
        ignore: do not ask these.
        extend_select: ask these too, whatever the preset leaves out.
        preset: ``quick`` leaves out the checks that train, ``full`` asks all.
        budget: seconds for one target, or ``60s``, ``2m``, ``1h``; no limit when not set.
        check_timeout: seconds after which a check is taken to hang and its process is ended.
        seed: what every random choice derives from.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ``xpu``.
        loop: which of a script's training loops to audit, where it has several: 1 for the first,
            2 for the one after. Those before it run to their end, each time that the script is
            started; where that takes long, ``check_timeout`` must allow for it. When not set, the
            first; in a script that speaks of loaders the first that has one.
        nproc_per_node: as of torchrun: how many processes to start the script in, for the checks
            that compare them; the others are asked of one. Not set for a program that is run as
            one process.
        sandbox: what keeps the program's hands off your files: ``kernel``, ``python``, ``off``, or
            ``auto`` for the best that this machine allows.
        allow_write: files and folders that the program writes for real.
        fail_on: the mildest finding that makes the exit code 1: ``fail`` or ``warn``.
        docs_url: where nnaudit's documentation can be read, such as a copy of it in your own
            network (``https://...`` or ``file:///...``): codes in reports are links to it. When not
            set, the address that the package names as its documentation, if it names one.
        thresholds: by check code, options of the check.
        per_module_ignores: by pattern of module names, the checks whose findings about these
            modules are suppressed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    targets: Words = ()
    select: Words = ()
    ignore: Words = ()
    extend_select: Words = ()
    preset: Literal["quick", "full"] = "full"
    budget: Duration | None = None
    check_timeout: Duration = 300.0
    seed: int = Field(default=0, ge=0, lt=2**32)
    device: Annotated[
        str,
        BeforeValidator(device_name),
        WithJsonSchema(_TEXT | {"pattern": f"^({_DEVICES})$"}),
    ] = "auto"
    loop: int | None = Field(default=None, ge=1)
    nproc_per_node: int | None = Field(default=None, ge=1, le=1024)
    sandbox: Literal["auto", "kernel", "python", "off"] = "auto"
    allow_write: Words = ()
    fail_on: Literal["fail", "warn"] = "fail"
    docs_url: Annotated[
        str, BeforeValidator(web_address), WithJsonSchema(_TEXT | {"pattern": _ADDRESS})
    ] = ""
    thresholds: dict[str, dict[str, Finite]] = Field(default_factory=dict)
    per_module_ignores: dict[str, Words] = Field(default_factory=dict)


def descriptions() -> dict[str, str]:
    """Return what each setting means, by its name, from the documentation of :class:`Settings`."""
    _, _, attributes = inspect.cleandoc(Settings.__doc__ or "").partition("Attributes:")
    described = re.split(r"\n\s{4,8}(?=[a-z_, ]+: )", attributes)
    return {
        name.strip(): " ".join(meaning.split())
        for names, _, meaning in (part.partition(": ") for part in described)
        for name in names.split(",")
    }
