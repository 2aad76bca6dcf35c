"""A network whose roundings are looked for: its norms, and the arithmetic of the analysis.

What a run rounds at each node is found by ``rounding_sweep``; errors add up from the real values on
(``bounds.accumulated``), or each activation is a new start (``bounds.noise``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from lipcert.bounds.ordered import Ordered
from lipcert.bounds.underflow import underflow
from lipcert.network import Network
from lipcert.network.activations import Activation
from lipcert.norms import ready_norm, row_norms
from lipcert.rounding import DOUBLE, Arithmetic


@dataclass(frozen=True, eq=False)
class Roundoff:
    """One network, in float64, with each node's L2 norm (activations: Lipschitz constant) and row
    norms. ``analysis``: the arithmetic of the bounds that roundings are found for; ``orders``: of
    the operators whose sums are in one that is known."""

    network: Network
    norms: list[float]
    rows: list[Tensor | None]
    analysis: Arithmetic = DOUBLE
    orders: dict[int, Ordered] = field(default_factory=dict)

    @classmethod
    def of(cls, network: Network, analysis: Arithmetic = DOUBLE) -> Roundoff:
        norms = [1.0] * len(network.nodes)
        rows: list[Tensor | None] = [None] * len(norms)
        for i in network.activations:
            kind = network.nodes[i].kind
            assert isinstance(kind, Activation)
            norms[i] = kind.lipschitz
        for i, operator in network.operators.items():
            norms[i] = ready_norm(operator)
            rows[i] = row_norms(operator, network.anchor)
        orders = {
            i: Ordered.of(operator, order)
            for i, operator in network.operators.items()
            if (order := network.nodes[i].order) is not None
        }
        return cls(network, norms, rows, analysis, orders)

    @property
    def unit(self) -> float:
        """The roundoff of an analysis in a narrower type than float64, else 0."""
        return 0.0 if self.analysis == DOUBLE else self.analysis.unit

    @cached_property
    def underflow(self) -> float:
        """What squares that underflow in the analysis can cost a margin."""
        return underflow(self.network, self.norms, self.analysis)
