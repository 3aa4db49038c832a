"""pytest: ``--nnaudit`` makes a test of every question about every target; a fixture for code.

pytest imports this module in every session of everyone who has nnaudit installed. It must import
nothing but pytest: what does the work is :mod:`nnaudit.app.pytest_items`, imported when asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from nnaudit.app.pytest_session import FOLDER, folder_of
from nnaudit.app.pytest_warning import NnauditWarning

if TYPE_CHECKING:
    from nnaudit.app.pytest_items import Auditor


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the two options."""
    group = parser.getgroup("nnaudit", "audit training programs")
    group.addoption(
        "--nnaudit",
        action="store_true",
        help="audit the targets that [tool.nnaudit] names: every check is a test",
    )
    group.addoption(
        "--nnaudit-fail-on",
        choices=("fail", "warn"),
        help="least severe finding that fails a test (default: [tool.nnaudit] fail-on, else fail)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and the collection of audits where it is asked for."""
    config.addinivalue_line("markers", "nnaudit: a check that nnaudit runs on a target")
    # A project that turns warnings into errors means those of its code; a check that only warns
    # fails through --nnaudit-fail-on, or a filter that names the category.
    if not any(NnauditWarning.__name__ in line for line in config.getini("filterwarnings")):
        category = f"nnaudit.{NnauditWarning.__name__}"
        config.addinivalue_line("filterwarnings", f"default::{category}")
    if config.getoption("nnaudit"):
        from nnaudit.app.pytest_items import Collection

        config.pluginmanager.register(Collection(config), "nnaudit-collection")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist where this session's audits lie."""
    node.workerinput["nnaudit_folder"] = str(folder_of(node.config))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the folder; the workers are gone by now."""
    if FOLDER in config.stash and not hasattr(config, "workerinput"):
        import shutil

        shutil.rmtree(config.stash[FOLDER], ignore_errors=True)


@pytest.fixture
def nnaudit(request: pytest.FixtureRequest) -> Auditor:
    """Audit from within a test: ``nnaudit.check("train.py")`` or ``nnaudit.check(model=..., ...)``.

    ``nnaudit(...)`` returns the report and judges nothing; ``nnaudit.check(...)`` fails the test
    where there are findings.
    """
    from nnaudit.app.pytest_items import Auditor

    return Auditor(request.config)
