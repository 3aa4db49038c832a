"""How long the run of the training is that several checks share."""

from __future__ import annotations

STEPS = 300
"""Steps of the run; up to :data:`LONGEST` where an epoch ends within that."""


SECONDS = 8.0
"""What the steps of the run may take, as on a quiet machine."""
