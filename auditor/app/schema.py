"""The JSON Schema of ``[tool.nnaudit]``, with which editors complete and check pyproject.toml."""

from __future__ import annotations

import json
from typing import Any

from nnaudit.checks.catalog import builtin_entries
from nnaudit.checks.selectors import order
from nnaudit.settings import Settings, descriptions

_CODES = ("select", "ignore", "extend-select")
"""The settings that name checks."""


def schema_text() -> str:
    """Return the schema of the table, in the form that schemastore.org takes from a tool."""
    meanings = descriptions()
    made = Settings.model_json_schema(by_alias=False)
    properties = {}
    for name, schema in made["properties"].items():
        key = name.replace("_", "-")
        properties[key] = {"description": meanings[name], **_without_title(schema)}
    known = _names_of_checks()
    for key in _CODES:
        properties[key] |= {"anyOf": [known, {"type": "array", "items": known}]}
    properties["thresholds"] |= {"properties": _options()}
    document = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": "https://json.schemastore.org/partial-nnaudit.json",
        "title": "nnaudit",
        "description": "How nnaudit audits this project: the table [tool.nnaudit].",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }
    return json.dumps(document, indent=2) + "\n"


def _without_title(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in ("title", "default")} | (
        {"default": schema["default"]} if schema.get("default") not in (None, [], {}) else {}
    )


def _names_of_checks() -> dict[str, Any]:
    """Offer our own codes and names; a plug-in's are any other words."""
    entries = sorted(builtin_entries(), key=lambda entry: order(entry.code))
    words = dict.fromkeys(w for e in entries for w in (e.family, e.code, e.name))
    return {"anyOf": [{"enum": list(words)}, {"type": "string"}]}


def _options() -> dict[str, Any]:
    """Return the options that each check has, with their defaults."""
    return {
        entry.code: {
            "description": entry.question,
            "type": "object",
            "additionalProperties": False,
            "properties": {
                name: {"type": "number", "default": value} for name, value in entry.options.items()
            },
        }
        for entry in sorted(builtin_entries(), key=lambda entry: order(entry.code))
        if entry.options
    }
