"""A check's docstring: the question it asks, then the sections of its documentation.

Must not import torch: the documentation is shown without the check.
"""

from __future__ import annotations

import inspect
import re

SECTIONS = ("Why", "How", "Fix", "References")
"""What a check's docstring holds after its first line, the question."""


def sections(docstring: str) -> dict[str, str]:
    """Return a check's docstring by section: ``question`` and each of :data:`SECTIONS`."""
    text = inspect.cleandoc(docstring)
    parts = re.split(rf"^({'|'.join(SECTIONS)}):\s*", text, flags=re.MULTILINE)
    found = {"question": parts[0].strip()}
    found.update({parts[i]: parts[i + 1].strip() for i in range(1, len(parts), 2)})
    return found
