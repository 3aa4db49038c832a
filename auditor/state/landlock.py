"""Landlock: the kernel refuses a process, and all that it starts, to write outside some folders.

Linux 5.19 and later, for everybody. What it cannot refuse is a change of a file's mode, owner or
times. See https://docs.kernel.org/userspace-api/landlock.html.

Must not import torch: it holds for the threads that are started after it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_NO_NEW_PRIVILEGES = 38

_WRITE_FILE, _MOVE, _TRUNCATE = 1 << 1, 1 << 13, 1 << 14
_MAKE_AND_REMOVE = sum(1 << bit for bit in range(4, 13))


class _Ruleset(ctypes.Structure):
    _fields_ = (("handled", ctypes.c_uint64),)


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def version() -> int:
    """Return the version of Landlock that this kernel has, 0 where there is none.

    The first cannot tell a move within a folder from one out of it, and counts as none.
    """
    try:
        found = _call(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    except (OSError, AttributeError):  # a system without syscall(2)
        return 0
    return found if found > 1 else 0


def write_only_under(paths: Iterable[str], in_place: Iterable[str] = ()) -> None:
    """Have the kernel refuse every write of this thread, and of its children, outside ``paths``.

    Below the folders ``in_place`` the files that are there can be written, and none be made,
    moved or removed: those of devices.

    Raises:
        OSError: the kernel does not allow that.
    """
    in_file = _WRITE_FILE | (_TRUNCATE if version() > 2 else 0)
    in_folder = in_file | _MAKE_AND_REMOVE | _MOVE
    attributes = _Ruleset(in_folder)
    rules = _call(_CREATE_RULESET, ctypes.byref(attributes), ctypes.sizeof(attributes), 0)
    try:
        allowances = [(path, in_folder if Path(path).is_dir() else in_file) for path in paths]
        for path, allowed in (*allowances, *((path, in_file) for path in in_place)):
            with suppress(FileNotFoundError):
                folder = os.open(path, os.O_PATH)
                rule = _Beneath(allowed, folder)
                _call(_ADD_RULE, rules, 1, ctypes.byref(rule), 0)
                os.close(folder)
        if ctypes.CDLL(None, use_errno=True).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "prctl")
        _call(_RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def _call(number: int, *arguments: object) -> int:
    result = int(ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "landlock")
    return result
