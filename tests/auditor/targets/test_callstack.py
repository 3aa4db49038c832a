"""Who called: users' frames, where a walk ends, and what renaming a file does not change."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

from nnaudit import errors
from nnaudit.targets import callstack
from nnaudit.targets.callstack import Role, registered


@pytest.fixture
def execute(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Execute a text as a user's file, with functions in its variables."""

    def run(text: str, name: str = "train.py", **variables: Any) -> dict[str, Any]:
        path = tmp_path / name
        path.write_text(text)
        exec(compile(text, str(path), "exec"), variables)
        return variables

    return run


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Import a text as a module of nnaudit's own, from a file with any name."""
    folder = tmp_path / "ours"
    folder.mkdir()
    monkeypatch.setattr(errors, "_OURS", (*errors._OURS, folder))

    def load(text: str, name: str = "any_name") -> ModuleType:
        module = ModuleType(name)
        exec(compile(text, str(folder / f"{name}.py"), "exec"), vars(module))
        return module

    yield load
    errors.is_ours.cache_clear()
    errors.is_user.cache_clear()


def names(frames: list[FrameType]) -> list[str]:
    return [frame.f_code.co_name for frame in frames]


NESTED = """
def inner():
    return ask()

def outer():
    return inner()

found = outer()
"""


def test_the_frames_of_a_run_are_the_users_outermost_first(execute: Any) -> None:
    def script() -> None:
        found.extend(execute(NESTED, ask=lambda: names(callstack.user_frames()))["found"])

    found: list[str] = []
    callstack.run(script)
    # This file is the user's too; what is further out than the run is not the script's.
    assert found == ["script", "run", "<module>", "outer", "inner", "<lambda>"]


def test_of_two_runs_on_top_of_each_other_the_inner_one_counts(execute: Any) -> None:
    def run() -> Any:
        text = "found = ask()\n"
        callstack.run(lambda: found.append(execute(text, ask=depth)["found"]))
        return len(callstack.user_frames())

    def depth() -> int:
        return len(callstack.user_frames())

    found: list[int] = []
    callstack.run(lambda: found.append(execute("found = ask()\n", ask=run)["found"]))
    assert found[0] == found[1], "both of a lambda, the fixture, the file, and who asks"


def test_the_innermost_line_of_the_user_is_found_through_libraries(tmp_path: Path) -> None:
    library = tmp_path / "site-packages" / "library.py"
    asked: dict[str, Any] = {"ask": callstack.user_line}
    exec(compile("def call():\n    return ask()\n", str(library), "exec"), asked)
    place = asked["call"]()
    assert place is not None
    assert place.file == __file__


def test_frames_can_be_passed_over(execute: Any) -> None:
    def ask() -> Any:
        return callstack.user_line(unless=lambda f: f.f_code.co_name in ("ask", "inner"))

    assert execute(NESTED, ask=ask)["found"].line == 6


def test_who_called_a_framework_is_told_from_what_it_calls(execute: Any, tmp_path: Path) -> None:
    library: dict[str, Any] = {}
    text = "def fit(step):\n    return step()\n"
    exec(compile(text, str(tmp_path / "site-packages" / "fit.py"), "exec"), library)
    script = (
        "def step():\n    return ask()\n\ndef main():\n    return fit(step)\n\nfound = main()\n"
    )
    found: list[Any] = []

    def start() -> None:
        ask = lambda: names(callstack.calling_frames())  # noqa: E731
        found.extend(execute(script, ask=ask, **library)["found"])

    callstack.run(start)
    assert found == ["start", "run", "<module>", "main"]


OURS = """
from nnaudit.targets import callstack
from nnaudit.targets.callstack import Role, registered

def ask(**options):
    return [f.f_code.co_name for f in callstack.own_call(**options)]

def plain(function):
    return function()

@registered(Role.SEEDS)
def seed(function):
    return function()
"""

CALLS = """
def asks():
    return ask(**options)

def calls():
    return through(asks)

found = calls()
"""


@pytest.mark.parametrize("file", ["reseeding", "observer", "patches", "renamed"])
def test_a_call_of_the_users_own_ends_at_our_frames(ours: Any, execute: Any, file: str) -> None:
    """Whatever the name of our file is, and though what calls on is no code of its own."""
    asking, between = ours(OURS, "asking"), ours(OURS, file)

    def within(call: Any, **options: Any) -> Any:
        return execute(CALLS, through=call, ask=asking.ask, options=options)["found"]

    assert within(between.plain) == ["asks"]
    assert within(between.plain, through=Role.SEEDS) == ["asks"]
    assert within(between.seed) == ["asks"]
    assert within(between.seed, through=Role.STANDS_IN) == ["asks"]
    assert within(between.seed, through=Role.SEEDS)[-3:] == ["<module>", "calls", "asks"]
    # Of the module that asks every function is passed over.
    assert within(asking.plain)[-3:] == ["<module>", "calls", "asks"]


def test_a_script_that_is_run_again_has_no_calls_of_its_own(ours: Any, execute: Any) -> None:
    asking, found = ours(OURS), []

    def script() -> None:
        for repeated in (True, False):
            options = {"repeated": repeated}
            variables = {"through": asking.plain, "ask": asking.ask, "options": options}
            found.append(bool(execute(CALLS, **variables)["found"]))

    callstack.run(script)
    callstack.run_again(script)
    assert found == [True, True, True, False]


def test_who_calls_directly_may_be_anybody(ours: Any, execute: Any) -> None:
    text = "\ndef who():\n    return callstack.caller(*roles).f_code.co_name\n"
    asking, between = ours(OURS + text, "asking"), ours(OURS, "between")
    script = "def calls():\n    return through(who)\n\nfound = calls()\n"
    for roles, expected in (((), "seed"), ((Role.SEEDS,), "calls"), ((Role.STANDS_IN,), "seed")):
        vars(asking)["roles"] = roles
        assert execute(script, through=between.seed, who=asking.who)["found"] == expected


def test_registration_is_by_code_object(ours: Any) -> None:
    """Two functions alike, of which one is registered: their code objects compare equal."""
    text = "def same():\n    return asked()\n"
    one, other = ours(text, "one"), ours(text, "other")
    assert one.same.__code__ == other.same.__code__
    registered(Role.SEEDS)(one.same)
    for module, role in ((one, Role.SEEDS), (other, None)):
        vars(module)["asked"] = lambda: callstack.role_of(sys._getframe(1))
        assert module.same() is role


def test_what_methods_on_the_stack_belong_to_is_found_once_each(execute: Any) -> None:
    text = (
        "class Loop:\n    def run(self):\n        return self.advance()\n"
        "    def advance(self):\n        return ask()\n\n"
        "class Trainer:\n    def fit(self):\n        return Loop().run()\n\n"
        "found = Trainer().fit()\n"
    )
    ask = lambda: [type(owner).__name__ for owner in callstack.receivers()]  # noqa: E731
    found: list[str] = []
    callstack.run(lambda: found.extend(execute(text, ask=ask)["found"]))
    assert found == ["Loop", "Trainer"]


def test_variables_are_read_and_written_in_functions_and_files(execute: Any) -> None:
    def change() -> None:
        file, function = callstack.user_frames()[-3:-1]
        seen.extend([callstack.variables(file)["x"], callstack.variables(function)["y"]])
        callstack.assign(file, {"x": 3})
        callstack.assign(function, {"y": 4})

    seen: list[int] = []
    text = "x = 1\ndef f():\n    y = 2\n    change()\n    return y\n\ny = f()\n"
    done = execute(text, change=change)
    assert (seen, done["x"], done["y"]) == ([1, 2], 3, 4)


def test_renaming_our_files_changes_nothing(tmp_path: Path) -> None:
    """A copy of the module under another name answers alike."""
    copy = tmp_path / "renamed_walks.py"
    shutil.copy(callstack.__file__, copy)
    module = ModuleType("renamed_walks")
    sys.modules[module.__name__] = module  # its dataclasses and enums look for it
    try:
        exec(compile(copy.read_text(), str(copy), "exec"), vars(module))
        found: list[list[str]] = []
        module.run(lambda: found.append(names(module.user_frames())))
        assert found == [["<lambda>"]], "its own frames are passed over, though no file of ours"
    finally:
        del sys.modules[module.__name__]
