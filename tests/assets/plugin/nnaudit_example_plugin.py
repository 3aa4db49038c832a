"""A check of somebody else's: what a third party writes, in full."""

from nnaudit import Check
from nnaudit.context import Audit
from nnaudit.report import Kind, Result


class ParameterBudget(Check):
    """Does the network have no more parameters than the house allows?

    Why: our devices have little memory.

    How: the numbers in all parameters are counted; more than `limit` is a failure.

    Fix: make the network smaller, or raise `limit`.

    References: our own handbook.
    """

    code, name, kind = "HOUSE101", "parameter-budget", Kind.EXACT
    options = {"limit": 1000.0}

    def run(self, audit: Audit) -> Result:
        """Count the parameters of the network."""
        count = sum(parameter.numel() for parameter in audit.loop.model.parameters())
        limit = self.option(audit, "limit")
        said = f"The network has {count} parameters, the house allows {limit:g}."
        if count > limit:
            return self.failed(said, fix="make the network smaller")
        return self.passed(said)


def checks() -> list[type[Check]]:
    """Return the checks; the entry point names this function."""
    return [ParameterBudget]
