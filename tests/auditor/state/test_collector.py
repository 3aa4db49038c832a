"""What is hidden from the garbage collector comes back."""

from __future__ import annotations

import gc

from nnaudit.state.collector import older_objects_hidden


def test_older_objects_are_hidden_for_as_long_as_the_block_lasts() -> None:
    old: list[int] = []
    with older_objects_hidden() as hidden:
        new: list[int] = []
        found = gc.get_objects()
        assert hidden
        assert not any(each is old for each in found)
        assert any(each is new for each in found)
    assert gc.get_freeze_count() == 0
    assert any(each is old for each in gc.get_objects())


def test_who_has_hidden_objects_keeps_them_so() -> None:
    with older_objects_hidden():
        with older_objects_hidden() as hidden:
            assert not hidden
        assert gc.get_freeze_count()
