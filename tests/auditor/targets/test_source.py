"""What is read off a user's source, and the one answer where there is none to read."""

from __future__ import annotations

import ast
import linecache
import os
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from nnaudit.targets.source import Source, source_of

PROGRAM = """\
import torch  # the library

@decorated
def train(model, loader):
    for epoch in range(3):  # epochs
        for batch in loader:
            loss = model(
                batch
            )
            loss.backward()
        rows = [step(row) for row in loader]

    def closure():
        return loss()

for fold in range(5):
    train(
        models[fold],
        loaders.of(fold),
    )
while True:
    async def serve():
        async for request in queue:
            answer(request)
else:
    torch.manual_seed(
        -42
    )
"""


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return read(tmp_path, PROGRAM)


def read(folder: Path, text: str | bytes, name: str = "train.py") -> Source:
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return source_of(file)


def line(text: str) -> int:
    return next(i for i, each in enumerate(PROGRAM.splitlines(), 1) if text in each)


def code_of(name: str) -> CodeType:
    """The code object of a function of the program."""
    todo = [compile(PROGRAM, "train.py", "exec")]
    while todo:
        code = todo.pop()
        if code.co_name == name:
            return code
        todo += [each for each in code.co_consts if isinstance(each, CodeType)]
    raise LookupError(name)


@pytest.mark.parametrize(
    ("at", "loops"),
    [
        ("import torch", []),
        ("for epoch", ["for epoch"]),
        ("for batch", ["for epoch", "for batch"]),
        ("backward", ["for epoch", "for batch"]),
        ("rows =", ["for epoch"]),
        ("return loss()", []),
        ("models[fold]", ["for fold"]),
        ("async def serve", ["while True"]),
        ("answer(request)", ["async for"]),
        ("-42", ["while True"]),
        ("# no such line", []),
    ],
)
def test_loops_around_a_line_are_those_of_its_function(
    source: Source, at: str, loops: list[str]
) -> None:
    number = line(at) if at in PROGRAM else 1_000
    assert [loop.lineno for loop in source.loops_at(number)] == [line(loop) for loop in loops]


def test_loops_around_a_frame_are_those_of_its_own_function(source: Source) -> None:
    rows = line("rows =")
    assert len(source.loops_around(code_of("train"), rows)) == 1
    assert source.loops_around(code_of("<listcomp>"), rows) == ()
    assert source.loops_around(code_of("<module>"), rows) == ()
    assert len(source.loops_around(code_of("<module>"), line("for fold"))) == 1
    assert len(source.loops_around(code_of("serve"), line("answer"))) == 1


def test_a_call_knows_its_receiver_function_and_loop(source: Source) -> None:
    calls = {(call.receiver, call.name): call for call in source.calls}
    backward, of = calls["loss", "backward"], calls["loaders", "of"]
    assert (backward.function, backward.loop) == (line("@decorated"), line("for epoch"))
    assert (of.function, of.loop) == (0, line("for fold"))
    outer = calls["", "train"]
    assert (outer.line, outer.end) == (line("    train("), line("loaders.of") + 1)
    assert [call.name for call in source.calls_at(line("loaders.of"))] == ["train", "of"]
    assert source.calls_at(line("import torch")) == []


def test_what_is_called_may_have_no_name(tmp_path: Path) -> None:
    (outer, inner) = read(tmp_path, "handlers[0](make()())[1]\n").calls[:2]
    assert (outer.name, outer.receiver) == ("", "")
    assert (inner.name, inner.receiver) == ("", "")


@pytest.mark.parametrize(
    ("call", "literal"),
    [
        ("seed(42)", True),
        ("seed(-1)", True),
        ("seed(0x2A)", True),
        ("seed(1_000)", True),
        ("seed(\n    seed=42,\n)", True),
        ("seed(True)", False),
        ("seed(args.seed)", False),
        ("seed(args.seed)  # not seed(42)", False),
        ("seed(42 + rank)", False),
        ("seed('42')", False),
        ("seed(1, 2)", False),
        ("seed()", False),
    ],
)
def test_a_literal_number_is_told_from_a_computed_one(
    tmp_path: Path, call: str, literal: bool
) -> None:
    (found,) = read(tmp_path, f"torch.{call}\n").calls
    assert found.takes_a_literal_number is literal


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("dropout(x, training=True)", True),
        ("dropout(\n    x,\n    training = True,\n)", True),
        ("dropout(x, training=self.training)", False),
        ("dropout(x, training=1)", False),
        ("dropout(x)  # training=True", False),
    ],
)
def test_what_a_call_says_for_a_keyword(tmp_path: Path, call: str, said: bool) -> None:
    (found,) = read(tmp_path, f"{call}\n").calls
    assert found.says("training", True) is said


def test_nodes_are_found_by_kind_and_line(source: Source) -> None:
    assert [node.targets[0].id for node in source.find(ast.Assign)] == ["rows", "loss"]  # type: ignore[attr-defined]
    (within,) = source.at(line("                batch"), ast.Assign)
    assert within.lineno == line("loss = model(")
    around = [type(node).__name__ for node in source.ancestors(within)]
    assert around == ["For", "For", "FunctionDef", "Module"]


def test_comments_and_lines_have_their_numbers(source: Source) -> None:
    assert source.comments == ((1, "# the library"), (line("for epoch"), "# epochs"))
    assert source.lines[line("-42") - 1].strip() == "-42"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, OSError),
        (b"def (:\n", SyntaxError),
        (b"x = 1\x00\n", (SyntaxError, ValueError)),
        (b"# coding: no-such-code\n", SyntaxError),
        (b"x = '\xff'\n", SyntaxError),
        (b"x = " + b"-" * 100_000 + b"1\n", (RecursionError, MemoryError, SyntaxError)),
    ],
)
def test_a_file_without_a_tree_has_nothing_in_it_and_says_why(
    tmp_path: Path, content: bytes | None, error: Any
) -> None:
    found = read(tmp_path, content) if content is not None else source_of(tmp_path / "absent.py")
    assert isinstance(found.error, error)
    assert (found.calls, found.comments, found.loops_at(1)) == ((), (), ())
    assert list(found.find(ast.AST)) == [found.tree]
    assert found.loops_around(code_of("train"), 6) == ()
    assert bool(found.text) == (content is not None), "the text is there all the same"


def test_a_deep_program_that_has_a_tree_is_read(tmp_path: Path) -> None:
    chain = "x" + "".join(f".then({i})" for i in range(500))
    found = read(tmp_path, f"for i in y:\n    {chain}\n")
    assert found.error is None
    assert len(found.calls) == 500
    assert found.calls[0].receiver == "...", "too deep to be written out"
    assert found.calls[-1].receiver == "x"
    assert {call.loop for call in found.calls} == {1}


def test_encodings_and_line_ends_are_pythons(tmp_path: Path) -> None:
    latin = read(tmp_path, b"# coding: latin-1\r\nname = '\xe9'  # \xe9\r\n", "latin.py")
    assert latin.lines[1] == "name = 'é'  # é"
    assert latin.comments[1] == (2, "# é")
    assert read(tmp_path, b"\xef\xbb\xbfx = f()\n", "marked.py").lines[0] == "x = f()"
    assert read(tmp_path, "a = '\x0c\u2028'\nf()\n", "odd.py").lines[1] == "f()"


def test_a_file_is_parsed_once_until_it_is_written_to(tmp_path: Path) -> None:
    first = read(tmp_path, "f()\n")
    assert source_of(str(tmp_path / "train.py")) is first
    read(tmp_path, "g(1)\n")
    os.utime(tmp_path / "train.py", (1, 1))
    assert [call.name for call in source_of(tmp_path / "train.py").calls] == ["g"]


def test_a_cell_of_a_notebook_is_found_in_linecache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook keeps the cells that it executes there, under names of files there are not."""
    cell, text = "/tmp/ipykernel_1/2.py", "for x in y:\n    torch.manual_seed(\n        0)\n"
    lines = text.splitlines(keepends=True)
    monkeypatch.setitem(linecache.cache, cell, (len(text), None, lines, cell))
    found = source_of(cell)
    assert found.error is None
    assert len(found.loops_at(3)) == 1
    assert found.calls_at(3)[0].takes_a_literal_number
    monkeypatch.delitem(linecache.cache, cell)
    assert isinstance(source_of(cell).error, OSError)
