"""What all processes of one pytest session share. Imports nothing but pytest, like the plug-in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = pytest.StashKey["Path"]()
"""Where the processes of one session leave audits for each other."""


def folder_of(config: pytest.Config) -> Path:
    """Return the folder that all processes of this session share; it need not exist yet."""
    if FOLDER not in config.stash:
        import tempfile
        import uuid
        from pathlib import Path

        given = getattr(config, "workerinput", {}).get("nnaudit_folder")
        fresh = Path(tempfile.gettempdir(), f"nnaudit-{uuid.uuid4().hex}")
        config.stash[FOLDER] = Path(given) if given else fresh
    return config.stash[FOLDER]
