"""The face of all rungs."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from lipcert.certification.findings import Findings, Step
from lipcert.certification.samples import Samples

# The smallest ball that anything is prepared for: norms over a single point are of no use.
SMALLEST_BALL = 1e-30


class Rung(Protocol):
    """One way of settling samples, with its turn in a ladder.

    ``climb`` chooses those samples of the batch that it may help, by what is ``known``, and says
    what it has found of them: lower bounds of certified radii, or an attack. ``name`` is the one
    in the certificate's table; several rungs of a ladder may share it.
    """

    @property
    def name(self) -> str: ...

    def climb(self, samples: Samples, known: Findings) -> Step: ...


def open_at(known: Findings, eps: float) -> Tensor:
    """Which samples are classified rightly and have neither a certificate nor an attack at ``eps``:
    ``(B,)``."""
    return known.correct & (known.radius < eps) & (eps < known.attacked)
