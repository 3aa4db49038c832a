"""JSON: the report's own data, complete, laid out so that a person can read a diff of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from nnaudit.report import SCHEMA_VERSION, Report, Reports
from nnaudit.reports.base import Options

_LINE = 100


def render(reports: Sequence[Report], options: Options) -> str:
    """Return one target's report, or several under ``reports``."""
    document = reports[0] if len(reports) == 1 else Reports(reports=tuple(reports))
    return _layout(document.model_dump(mode="json")) + "\n"


def schema_text() -> str:
    """Return the JSON Schema of a report file, as published in ``report.schema.json``."""
    schema = TypeAdapter(Report | Reports).json_schema(mode="serialization")
    heading = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:nnaudit:report:{SCHEMA_VERSION}",
        "title": f"nnaudit report, schema version {SCHEMA_VERSION}",
    }
    return json.dumps(heading | schema, indent=2) + "\n"


def _layout(value: Any, indent: str = "") -> str:
    """Break lines between containers only: a curve of 500 points stays on one line."""
    inner = indent + "  "
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_layout(item, inner)}" for key, item in value.items()]
        return _join(items, ("{", "}"), indent, broken=sum(map(len, items)) > _LINE)
    if isinstance(value, list):
        items = [_layout(item, inner) for item in value]
        nested = any(isinstance(item, dict | list) for item in value)
        return _join(items, ("[", "]"), indent, broken=nested)
    # ASCII only, so that no console's encoding can spoil it; this also carries lone surrogates.
    return json.dumps(value, allow_nan=False)


def _join(items: list[str], brackets: tuple[str, str], indent: str, *, broken: bool) -> str:
    opening, closing = brackets
    if not broken and not any("\n" in item for item in items):
        return opening + ", ".join(items) + closing
    inner = f"\n{indent}  "
    return f"{opening}{inner}" + f",{inner}".join(items) + f"\n{indent}{closing}"
