"""The schema of ``[tool.nnaudit]`` accepts what nnaudit accepts."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from nnaudit.app.schema import schema_text
from nnaudit.settings import Settings

SCHEMA = json.loads(schema_text())


def test_it_is_a_schema_with_every_setting_described() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert {name.replace("-", "_") for name in SCHEMA["properties"]} == set(Settings.model_fields)
    assert all(prop["description"] for prop in SCHEMA["properties"].values())
    assert SCHEMA["properties"]["fail-on"]["default"] == "fail"


@pytest.mark.parametrize(
    "table",
    [
        {"targets": ["train.py -- --epochs 1"], "budget": "2m", "seed": 3},
        {"budget": 90, "check-timeout": "1.5h", "device": "cuda:1", "fail-on": "warn"},
        {"select": "DATA,shuffling", "ignore": ["HOUSE101"]},
        {"thresholds": {"DATA110": {"imbalance": 20}, "HOUSE101": {"limit": 3}}},
        {"per-module-ignores": {"net.*": ["GRAD101"]}},
    ],
)
def test_what_nnaudit_accepts_is_valid(table: dict[str, Any]) -> None:
    Settings(**{key.replace("-", "_"): value for key, value in table.items()})
    jsonschema.validate(table, SCHEMA)


@pytest.mark.parametrize(
    "table",
    [
        {"budgt": "2m"},
        {"budget": "soon"},
        {"device": "tpu"},
        {"fail-on": "note"},
        {"thresholds": {"DATA110": {"imbalanc": 20}}},
        {"seed": -1},
    ],
)
def test_what_nnaudit_refuses_is_not(table: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(table, SCHEMA)
