"""Finding the checks: ours and plug-ins', by the entry-point group ``nnaudit.checks``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from nnaudit.checks import GROUP
from nnaudit.checks.base import Check
from nnaudit.checks.selectors import order, unknown
from nnaudit.errors import UsageError, describe


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
        ordered = sorted(checks.values(), key=lambda check: order(check.code))
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
        return UsageError(unknown(selector, known))


def _matches(check: type[Check], selector: str) -> bool:
    return selector.upper() in (check.code, check.family()) or selector.lower() == check.name


def _checks_of(point: EntryPoint) -> list[type[Check]]:
    made = point.load()()
    for check in made:
        check.validate()
    return list(made)
