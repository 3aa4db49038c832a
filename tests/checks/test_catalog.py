"""What is read from the checks' source is what their classes say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from nnaudit.checks import builtin, catalog


def test_the_source_says_what_the_classes_say() -> None:
    classes = {check.code: check for check in builtin()}
    entries = {entry.code: entry for entry in catalog.builtin_entries()}
    assert entries.keys() == classes.keys()
    for code, entry in entries.items():
        check = classes[code]
        assert (entry.name, entry.family, entry.kind, entry.trains, entry.options) == (
            check.name,
            check.family(),
            check.kind.value,
            check.trains,
            check.options,
        )
        assert entry.documentation == check.documentation()


def test_checks_are_told_in_battery_order() -> None:
    codes = [entry.code for entry in catalog.catalog()]
    assert codes[0] == "DATA101"
    assert codes.index("FIT101") < codes.index("SEED101")


@pytest.mark.parametrize("word", ["DATA104", "data104", "shuffling", "Shuffling"])
def test_a_check_is_found_by_code_and_name(word: str) -> None:
    assert catalog.find(word).code == "DATA104"


def test_what_nothing_is_called_names_the_nearest() -> None:
    with pytest.raises(LookupError, match="did you mean shuffling"):
        catalog.find("shufling")


def test_plug_ins_are_asked_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    check = type("House", (builtin()[0],), {"code": "HOUSE101", "name": "house"})
    points = [SimpleNamespace(name=name) for name in (catalog.OURS, "house")]
    monkeypatch.setattr(catalog, "entry_points", lambda group: points)
    monkeypatch.setattr(
        "nnaudit.checks.registry.Registry.load",
        lambda: SimpleNamespace(checks=[*builtin(), check]),
    )
    assert catalog.find("house").code == "HOUSE101"
    assert catalog.catalog()[-1].family == "HOUSE"
