"""Standard input: a terminal has a size, and gives no answers; a pipe gives what is in it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

PROGRAM = """
import os, sys
from nnaudit.engine.stdin import leave_unanswered
leave_unanswered()
print(sys.stdin.isatty(), sys.stdin.fileno(), sys.stdin is sys.__stdin__)
try:
    print(os.get_terminal_size(0).columns)
except OSError:
    print("no terminal")
try:
    print("read", input("name? "))
except EOFError as error:
    print(error)
"""


def answer_to(**stdin: object) -> list[str]:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True, **stdin)  # type: ignore[call-overload]
    lines: list[str] = done.stdout.splitlines()
    return lines


def test_a_terminal_is_one_and_gives_no_answer() -> None:
    outside, inside = pty.openpty()
    try:
        os.write(outside, b"typed\n")
        lines = answer_to(stdin=inside)
    finally:
        os.close(outside)
        os.close(inside)
    assert lines == ["True 0 True", "0", "name? EOF when reading a line"]


def test_a_pipe_is_read() -> None:
    assert answer_to(input="Ada\n") == ["False 0 True", "no terminal", "name? read Ada"]
