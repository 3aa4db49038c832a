"""Sets of strings in another order."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from nnaudit.targets.set_order import ReversedSet, compiled, has_sets, turned_sets, unsorted

WORDS = ["b", "a", "d", "c"]


def test_strings_come_backwards_and_nothing_else_does() -> None:
    assert list(ReversedSet(WORDS)) == list(set(WORDS))[::-1]
    pairs = [(word, 1) for word in WORDS]
    assert list(ReversedSet(pairs)) == list(set(pairs))[::-1]
    assert list(ReversedSet(range(5))) == list(set(range(5)))
    assert sorted(ReversedSet(WORDS)) == sorted(WORDS)


def test_it_is_a_set_like_any_other() -> None:
    turned = ReversedSet(WORDS)
    assert isinstance(turned, set)
    assert isinstance({1}, ReversedSet)
    assert not isinstance([1], ReversedSet)
    assert turned == set(WORDS)
    assert turned | {"e"} == {*WORDS, "e"}
    assert type(pickle.loads(pickle.dumps(turned))) is set


SCRIPT = """
def order(words):
    return list(set(words))
words = list({"b", "a", "d", "c"})
letters = list({word for word in ["b", "a", "d", "c"]})
alphabet = sorted(set(words))
numbers = dict(enumerate(
    sorted(
        set(words))))
"""


def ran(path: Path) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compiled(path, names), names)
    return names


def test_a_file_has_it_only_for_the_time(tmp_path: Path) -> None:
    file = tmp_path / "words.py"
    file.write_text(SCRIPT)
    usual = ran(file)
    expected = usual["order"](WORDS)[::-1]
    with turned_sets() as lines:
        turned = ran(file)
        assert turned["order"](WORDS) == expected
    # Not usual["words"]: Python fills a display of constants from a frozenset, which may hold them
    # in another order where hashes collide.
    assert turned["words"] == expected
    assert turned["letters"] == usual["letters"][::-1]
    assert turned["alphabet"] == usual["alphabet"] == sorted(WORDS)
    assert [place.line for place in unsorted(lines)] == [4, 5, 3]
    assert ran(file)["words"] == usual["words"]


def test_which_files_make_sets(tmp_path: Path) -> None:
    for text, expected in {"x = {1}": True, "x = set()": True, "x = {1: 2}": False}.items():
        file = tmp_path / "some.py"
        file.write_text(text)
        assert has_sets([file]) is expected
    assert not has_sets([tmp_path / "none.py"])
