"""Finding the checks: ours and plug-ins', by the entry-point group ``nnaudit.checks``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from nnaudit.checks.base import Check
from nnaudit.errors import UsageError, describe

GROUP = "nnaudit.checks"


@dataclass(frozen=True)
class BrokenPlugin:
    """A plug-in whose checks could not be loaded, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Registry:
    """The checks there are, in battery order, and the plug-ins that failed to load."""

    checks: tuple[type[Check], ...]
    broken: tuple[BrokenPlugin, ...] = ()

    @classmethod
    def load(cls) -> Registry:
        """Load every registered check. A plug-in that fails is kept in ``broken``, not raised."""
        checks: dict[str, type[Check]] = {}
        broken: list[BrokenPlugin] = []
        for point in entry_points(group=GROUP):
            try:
                for check in _checks_of(point):
                    if check.code in checks and checks[check.code] is not check:
                        raise TypeError(f"the code {check.code} is taken by {checks[check.code]}")
                    checks[check.code] = check
            except Exception as error:  # a plug-in may raise anything
                broken.append(BrokenPlugin(point.name, describe(error)))
        ordered = sorted(checks.values(), key=battery_order)
        return cls(tuple(ordered), tuple(broken))

    def select(
        self,
        select: Iterable[str] = (),
        ignore: Iterable[str] = (),
        extend: Iterable[str] = (),
        *,
        quick: bool = False,
    ) -> tuple[type[Check], ...]:
        """Return the checks that the selectors name: codes, families or names.

        An empty ``select`` means all of the preset. What is named outright is not subject to the
        preset.

        Raises:
            UsageError: a selector names nothing.
        """
        select = tuple(select)
        wanted = (
            self._matching(select)
            if select
            else {check for check in self.checks if not (quick and check.trains)}
        )
        wanted = (wanted | self._matching(extend)) - self._matching(ignore)
        return tuple(check for check in self.checks if check in wanted)

    def find(self, selector: str) -> type[Check]:
        """Return the one check with this code or name.

        Raises:
            UsageError: there is none.
        """
        for check in self.checks:
            if selector.upper() == check.code or selector.lower() == check.name:
                return check
        raise self._unknown(selector)

    def _matching(self, selectors: Iterable[str]) -> set[type[Check]]:
        found: set[type[Check]] = set()
        for selector in selectors:
            matching = {check for check in self.checks if _matches(check, selector)}
            if not matching:
                raise self._unknown(selector)
            found |= matching
        return found

    def _unknown(self, selector: str) -> UsageError:
        known = [word for c in self.checks for word in (c.code, c.family(), c.name)]
        # Letters that look like the digits of a code are read as these.
        code = re.sub(r"(?<=\d)[OIL]", lambda m: _DIGITS[m.group()], selector.upper())
        near = [code] if code in known else []
        for word in (selector, selector.upper()):
            near = near or difflib.get_close_matches(word, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "`nnaudit rule --all` lists them"
        return UsageError(f"no check has the code, family or name {selector!r}: {hint}")


_DIGITS = {"O": "0", "I": "1", "L": "1"}

FAMILIES = (
    "DATA",
    "INIT",
    "LOSS",
    "GRAD",
    "STEP",
    "MODE",
    "NORM",
    "FIT",
    "SEED",
    "GEN",
    "PERF",
    "DIST",
)
"""The battery's order."""


def battery_order(check: type[Check]) -> tuple[int, str]:
    """Return the key that sorts checks by family, unknown families last, and by code in each."""
    family = check.family()
    return FAMILIES.index(family) if family in FAMILIES else len(FAMILIES), check.code


def _matches(check: type[Check], selector: str) -> bool:
    return selector.upper() in (check.code, check.family()) or selector.lower() == check.name


def _checks_of(point: EntryPoint) -> list[type[Check]]:
    made = point.load()()
    for check in made:
        check.validate()
    return list(made)
