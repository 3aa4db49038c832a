"""What the processes of a distributed run did, side by side."""

from __future__ import annotations

from nnaudit.context import Audit, Probe
from nnaudit.ranks.record import Ranks


class SeveralRanks(Probe[Ranks]):
    """Hands over what was seen before the audit: the ranks run once, and are not asked again."""

    def measure(self, audit: Audit) -> Ranks:
        """Return what was seen."""
        assert audit.ranks is not None  # Needs.RANKS
        return audit.ranks
