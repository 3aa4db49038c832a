"""The loaders that a script reads, by number, and its passes over them."""

from __future__ import annotations

from typing import Any

from nnaudit.report import Location
from nnaudit.targets import callstack


class Loaders:
    """Numbers loaders in the order in which the script reads them, and counts its passes."""

    def __init__(self) -> None:
        self._known: list[Any] = []
        self._passes: list[int] = []
        self._begun: list[int] = []
        self._places: dict[int, Location | None] = {}

    def __getitem__(self, number: int) -> Any:
        return self._known[number]

    def made(self, loader: Any) -> None:
        """Note the line that makes ``loader``."""
        self._places[id(loader)] = callstack.user_line()

    def place(self, loader: Any) -> Location | None:
        """Return the line that made ``loader``."""
        return self._places.get(id(loader))

    def number(self, loader: Any) -> int:
        """Return the number of a loader; one made anew for the same data has the same."""
        data, place = getattr(loader, "dataset", None), self.place(loader)
        for number, known in enumerate(self._known):
            anew = place is not None and place == self.place(known)
            if known is loader or (anew and getattr(known, "dataset", None) is data):
                return number
        self._known.append(loader)
        self._passes.append(0)
        self._begun.append(-1)
        return len(self._known) - 1

    def begin(self, number: int, step: int) -> int:
        """Note a pass that begins after ``step`` steps; return how many there were, with this one.

        One in which no step was taken is none.
        """
        if self.has_trained(number, step):
            self._passes[number] += 1
        self._begun[number] = step
        return self._passes[number]

    def has_trained(self, number: int, step: int) -> bool:
        """Whether the last pass, if any, was more than a look at a batch, after ``step`` steps."""
        return step > self._begun[number]

    def epoch(self, number: int) -> int:
        """Return the number of the pass that is going on, from 0."""
        return self._passes[number] - 1
