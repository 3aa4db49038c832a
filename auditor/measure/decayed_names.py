"""Names by which a program's source leaves parameters out of weight decay."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nnaudit.report import Location
from nnaudit.targets.source import Source


@dataclass(frozen=True)
class UnmetName:
    """A part of parameters' names that no parameter has.

    Attributes:
        name: the part.
        location: of the list that it is in.
    """

    name: str
    location: Location


def unmet_names(source: Source, names: Iterable[str]) -> Iterator[UnmetName]:
    """Yield the names in lists of strings with a ``bias`` that are in none of ``names``.

    ``no_decay = ["bias", "LayerNorm.weight"]`` is how these are written. Nothing is yielded of a
    list of which no string is in a name: it may be about another network.
    """
    known = tuple(names)
    for node in source.nodes:
        if not isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            continue
        parts = [each.value for each in node.elts if isinstance(each, ast.Constant)]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) != len(node.elts) or not any("bias" in text.lower() for text in texts):
            continue
        unmet = [text for text in texts if not any(text in name for name in known)]
        if len(unmet) < len(texts):
            where = Location(file=source.file, line=node.lineno)
            yield from (UnmetName(text, where) for text in unmet)
