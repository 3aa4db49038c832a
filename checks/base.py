"""The base class of checks, and what a check's documentation must hold."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from nnaudit.checks.docstring import SECTIONS, sections
from nnaudit.checks.selectors import family_of
from nnaudit.context import Audit, Probe
from nnaudit.loop.base import Needs
from nnaudit.report import Evidence, Kind, Location, Result, Status


class CheckDefinitionError(TypeError):
    """A check class lacks a part or documents itself incompletely."""


class Check(ABC):
    """One question about a training program.

    Attributes:
        code: stable and never reused: family and three digits (``DATA104``).
        name: a noun phrase in kebab case (``shuffling``).
        kind: how strong its evidence is, and so whether it may fail.
        needs: what the loop must offer; without it the check is skipped.
        probes: the shared measurements it asks for.
        trains: whether it takes more than a handful of steps: not part of the quick preset.
        consequence_of: codes whose failure explains a failure of this check.
        options: thresholds a configuration may set, with their defaults.
        url: where a plug-in's check is documented; reports link to it.
    """

    code: ClassVar[str]
    name: ClassVar[str]
    kind: ClassVar[Kind]
    needs: ClassVar[tuple[Needs, ...]] = ()
    probes: ClassVar[tuple[type[Probe[Any]], ...]] = ()
    trains: ClassVar[bool] = False
    consequence_of: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[dict[str, float]] = {}
    url: ClassVar[str] = ""

    @abstractmethod
    def run(self, audit: Audit) -> Result:
        """Answer the question, with :meth:`answer` or one of its short forms.

        Raises:
            UserCodeError: the user's code raised: the runner reports status ``error``.
        """

    @classmethod
    def family(cls) -> str:
        """The letters of the code."""
        return family_of(cls.code)

    @classmethod
    def documentation(cls) -> dict[str, str]:
        """The docstring by section: ``question`` and each of :data:`SECTIONS`."""
        return sections(cls.__doc__ or "")

    @classmethod
    def explanation(cls) -> dict[str, str]:
        """What a report says of the check beside its question and the fix, by section."""
        documented = cls.documentation()
        return {name: documented[name] for name in ("Why", "How", "References")}

    @classmethod
    def address(cls) -> str:
        """Where the check is documented: :attr:`url`; of ours, a path below the documentation."""
        ours = cls.__module__.startswith(f"{__package__}.")
        return cls.url or (f"checks/{cls.code}.html" if ours else "")

    @classmethod
    def validate(cls) -> None:
        """Check that the class is complete.

        Raises:
            CheckDefinitionError: a part is missing or malformed; the message says which.
        """
        for attribute in ("code", "name", "kind"):
            if not hasattr(cls, attribute):
                raise CheckDefinitionError(f"{cls.__name__} has no {attribute}")
        if not re.fullmatch(r"[A-Z]+\d{3}", cls.code):
            raise CheckDefinitionError(f"{cls.__name__}: {cls.code!r} is not letters and 3 digits")
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", cls.name):
            raise CheckDefinitionError(f"{cls.__name__}: {cls.name!r} is not in kebab case")
        documented = cls.documentation()
        if not documented["question"].endswith("?"):
            raise CheckDefinitionError(
                f"{cls.__name__}: its docstring does not begin with a question"
            )
        for section in SECTIONS:
            if not documented.get(section):
                raise CheckDefinitionError(f"{cls.__name__}: its docstring lacks '{section}:'")

    def option(self, audit: Audit, name: str) -> float:
        """Return the threshold ``name``: the configuration's, else the default."""
        return audit.options.get(self.code, {}).get(name, self.options[name])

    def cause(self, audit: Audit) -> str:
        """Return the exact check that has failed and explains a failure of this one; else empty.

        What follows from it need not be proved at great cost: ``inconclusive``, naming the cause.
        """
        return next((code for code in self.consequence_of if code in audit.broken), "")

    def answer(
        self,
        status: Status,
        message: str,
        *,
        measured: str = "",
        threshold: str = "",
        evidence: tuple[Evidence, ...] = (),
        location: Location | None = None,
        module: str = "",
        modules: tuple[str, ...] = (),
        fix: str = "",
    ) -> Result:
        """Build the result. ``message`` is one sentence: what was measured against what.

        Where the answer is about several modules or parameters, ``modules`` names all of them, so
        that whoever suppresses one does not suppress the others.

        Raises:
            ValueError: a check of kind judgement says ``fail``, or a finding comes without a fix.
        """
        if status is Status.FAIL and self.kind is Kind.JUDGEMENT:
            raise ValueError(f"{self.code} is a judgement: it may warn, not fail")
        if status in (Status.FAIL, Status.WARN) and not fix:
            raise ValueError(f"{self.code}: a finding needs a fix")
        return Result(
            code=self.code,
            name=self.name,
            family=self.family(),
            kind=self.kind,
            question=self.documentation()["question"],
            status=status,
            message=message,
            measured=measured,
            threshold=threshold,
            evidence=evidence,
            location=location,
            module=module,
            modules=modules,
            fix=fix,
        )

    def passed(self, message: str, **details: Any) -> Result:
        """Build a ``pass``."""
        return self.answer(Status.PASS, message, **details)

    def failed(self, message: str, **details: Any) -> Result:
        """Build a ``fail``: ``fix`` is required."""
        return self.answer(Status.FAIL, message, **details)

    def warned(self, message: str, **details: Any) -> Result:
        """Build a ``warn``: ``fix`` is required."""
        return self.answer(Status.WARN, message, **details)

    def noted(self, message: str, **details: Any) -> Result:
        """Build a ``note``."""
        return self.answer(Status.NOTE, message, **details)

    def inconclusive(self, message: str, **details: Any) -> Result:
        """Build an ``inconclusive``: there is not enough evidence either way."""
        return self.answer(Status.INCONCLUSIVE, message, **details)

    def skipped(self, message: str, **details: Any) -> Result:
        """Build a ``skip``: the question does not apply."""
        return self.answer(Status.SKIP, message, **details)
