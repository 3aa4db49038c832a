"""The base class of probes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

if TYPE_CHECKING:
    from nnaudit.context import Audit

T = TypeVar("T")


class Probe(ABC, Generic[T]):
    """A measurement. Its result is shared by all checks that declare it, and must not be changed.

    A probe starts from the state in which the target was handed over, and may do to the loop what
    it likes: the runner restores it afterwards. It may ask only for the probes it declares in
    ``probes``, which are measured before it.
    """

    probes: ClassVar[tuple[type[Probe[Any]], ...]] = ()

    @abstractmethod
    def measure(self, audit: Audit) -> T:
        """Take the measurement.

        Raises:
            UserCodeError: the user's code raised.
            OutOfBudgetError: the time is used up.
        """
