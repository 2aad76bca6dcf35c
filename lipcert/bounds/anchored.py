"""The anchored bound: how far every value moves away from the sample, layer by layer.

Box and ball of each activation's input are carried together. With ``s`` the secants of the
activations seen from the sample, ``|Δa| ≤ w |Δz|`` for ``w = max |s|``, so

    box:   interval image of the box of Δa   ∩   ± ρ ‖row_k(A diag(w))‖
    ball:  ρ' = Σ_j ‖M A_j diag(w_j)‖ ρ_j    and no more than the box's own half-diagonal,

``M`` the neurons that can vary. Later boxes gain from what earlier ones ruled out, and the secants
from the sample are flatter than the slopes between any two points: this bounds margins and radii,
and no Lipschitz constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lipcert.bounds.boxes import Box, Centre, affine_box, around, sum_box
from lipcert.bounds.lipschitz import Weights, local_margins
from lipcert.bounds.methods import Bound, EdgeNorms, NormOf
from lipcert.network import Input, Sum
from lipcert.network.activations import Elementwise
from lipcert.network.operators import Diagonal, Operator, Select
from lipcert.norms import WeightedMap
from lipcert.rounding import FLOAT64, gamma

EdgeNorm = Callable[[int, int, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Layer:
    """One activation's input over the ball: values ``anchor`` at the sample, box, and ball
    ``‖M Δz‖₂ ≤ radius``; ``gain`` is ``w``, ``varying`` the mask M."""

    anchor: Tensor
    lower: Tensor
    upper: Tensor
    radius: Tensor
    gain: Tensor
    varying: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Layer:
        """Every tensor changed alike: rows chosen, or a type."""
        return Layer(*(change(getattr(self, field.name)) for field in fields(self)))


@dataclass(frozen=True, eq=False)
class Reach:
    """How far a node moves, from balls alone: ``|Δv| ≤ width``; while the node is only a scaled
    rearrangement of one source, ``Δv = diag(√squares) r`` with ``‖r‖₂ ≤ radius``."""

    width: Tensor
    radius: Tensor | None = None
    squares: Tensor | None = None


class AnchoredBound(Bound):
    """Margins from the anchored state, with ball ∩ box in the last layer.

    The network must have element-wise activations only (``network.lower``).
    """

    def prepare(self, centre: Centre, eps: Tensor, norm_of: NormOf) -> EdgeNorms:
        numbers = {(edge.source, edge.sink): n for n, edge in enumerate(self.layers.edges)}
        sinks = [self.layers.network.nodes[i].inputs[0] for i in self.layers.network.activations]
        found: dict[tuple[int, int], Tensor] = {}

        def norm(source: int, sink: int, inner: Tensor, outer: Tensor) -> Tensor:
            if (source, sink) not in found:
                # Where two activations share an input each has a mask of its own: take none.
                mask = outer if sinks.count(sink) == 1 else torch.ones_like(outer)
                number = numbers[source, sink]
                mapping = WeightedMap(self.layers.edges[number], inner, mask)
                found[source, sink] = norm_of(self.norms[source, sink], mapping, number)
            return found[source, sink]

        self.state(centre, eps, norm)
        return found

    def margins(self, centre: Centre, labels: Tensor, eps: Tensor, prepared: EdgeNorms) -> Tensor:
        return self.margins_in(centre, labels, eps, self.prepared_state(centre, eps, prepared))

    def margins_in(
        self, centre: Centre, labels: Tensor, eps: Tensor, state: dict[int, Layer]
    ) -> Tensor:
        """As ``margins``, from a state that is at hand."""
        gain = {0: torch.ones_like(centre.values[0])}
        radii, change = {0: eps}, {0: _ball_box(centre, eps)}
        for i, layer in state.items():
            gain[i], radii[i] = layer.gain, layer.radius
            change[i] = self._change(centre, i, layer)
        return local_margins(self.layers, centre, labels, Weights(gain, {}, change), radii)

    def constant(self, centre: Centre, eps: Tensor, prepared: EdgeNorms) -> Tensor:
        raise TypeError("secants from the sample bound no Lipschitz constant: use LocalBound")

    def prepared_state(self, centre: Centre, eps: Tensor, prepared: EdgeNorms) -> dict[int, Layer]:
        """The state at ``eps``, with norms that were found at this radius or a larger one."""
        return self.state(centre, eps, lambda source, sink, _inner, _outer: prepared[source, sink])

    def state(self, centre: Centre, eps: Tensor, norm: EdgeNorm) -> dict[int, Layer]:
        """Every activation's layer, over the balls of radius ``eps`` ``(B,)``."""
        network = self.layers.network
        boxes: list[Box] = []
        reaches: list[Reach] = []
        state: dict[int, Layer] = {}
        for i, node in enumerate(network.nodes):
            value = centre.values[i]
            match node.kind:
                case Input():
                    radius = _column(eps, value)
                    ones = torch.ones_like(value)
                    reach = Reach(radius.expand_as(value), eps, ones)
                    box = around(value, reach.width)
                case Sum():
                    reach = Reach(_total([reaches[j].width for j in node.inputs]))
                    box = sum_box([boxes[j] for j in node.inputs])
                case Elementwise() as activation:
                    source = node.inputs[0]
                    radii = {0: eps} | {j: layer.radius for j, layer in state.items()}
                    gains = {0: torch.ones_like(centre.values[0])}
                    gains |= {j: layer.gain for j, layer in state.items()}
                    layer = self._layer(
                        activation, centre, source, boxes[source], gains, radii, norm
                    )
                    state[i] = layer
                    box = activation.image(layer.lower, layer.upper)
                    width = (
                        torch.minimum(_column(layer.radius, layer.gain), reaches[source].width)
                        * layer.gain
                        * (1 + 4 * FLOAT64)
                    )
                    reach = Reach(width, layer.radius, layer.gain.square())
                case Operator() as operator:
                    reach = _through(operator, reaches[node.inputs[0]])
                    box = affine_box(operator, boxes[node.inputs[0]])
                case _:
                    raise TypeError(f"{node.origin}: {type(node.kind).__name__} is to be lowered")
            low, high = around(value, reach.width + centre.errors[i])
            boxes.append((torch.maximum(box[0], low), torch.minimum(box[1], high)))
            reaches.append(reach)
        return state

    def _layer(
        self,
        activation: Elementwise,
        centre: Centre,
        source: int,
        box: Box,
        gains: dict[int, Tensor],
        radii: dict[int, Tensor],
        norm: EdgeNorm,
    ) -> Layer:
        anchor, error = centre.values[source], centre.errors[source]
        # The box holds the computed value too: it is what the secants are seen from.
        lower = torch.minimum(box[0], anchor - error)
        upper = torch.maximum(box[1], anchor + error)
        flat, steep = activation.secant(lower, upper, anchor)
        gain = torch.maximum(flat.abs(), steep.abs())
        varying = torch.where(activation.gain(lower, upper) != 0, 1.0, 0.0).to(gain.dtype)
        gain = torch.where(varying != 0, gain, 0)
        arriving = [edge for edge in self.layers.edges if edge.sink == source]
        total = torch.zeros_like(radii[0])
        for edge in arriving:
            found = norm(edge.source, source, gains[edge.source], varying)
            total = total + found * radii[edge.source]
        width = torch.maximum(upper - anchor, anchor - lower) * varying
        diagonal = width.flatten(1).norm(dim=1) * (1 + gamma(width[0].numel() + 8))
        radius = torch.minimum(total * (1 + (len(arriving) + 2) * FLOAT64), diagonal)
        # From the real value at the sample to the computed one.
        radius = radius + error.flatten(1).norm(dim=1) * (1 + gamma(error[0].numel() + 8))
        return Layer(anchor, lower, upper, radius * (1 + 4 * FLOAT64), gain, varying)

    def _change(self, centre: Centre, node: int, layer: Layer) -> Box:
        kind = self.layers.network.nodes[node].kind
        assert isinstance(kind, Elementwise)
        lower, upper = kind.image(layer.lower, layer.upper)
        value, error = centre.values[node], centre.errors[node]
        slack = error + 4 * FLOAT64 * (value.abs() + lower.abs() + upper.abs())
        return lower - value - slack, upper - value + slack


def _ball_box(centre: Centre, eps: Tensor) -> Box:
    radius = _column(eps, centre.values[0]).expand_as(centre.values[0])
    return -radius, radius


def _through(operator: Operator, before: Reach) -> Reach:
    """Exact rows as long as a node rearranges one source, magnitudes after that."""
    slack = 1 + gamma(operator.terms + 8)
    if before.squares is None or before.radius is None:
        return Reach(operator.magnitude(before.width) * slack)
    squares = operator.squared(before.squares) * slack
    rows = squares.sqrt() * _column(before.radius, squares) * (1 + 8 * FLOAT64)
    width = torch.minimum(rows, operator.magnitude(before.width) * slack)
    moves = isinstance(operator, Diagonal) or (
        isinstance(operator, Select) and operator.multiplicity <= 1
    )
    return Reach(width, before.radius, squares) if moves else Reach(width)


def _total(widths: list[Tensor]) -> Tensor:
    return torch.stack(widths).sum(0) * (1 + gamma(len(widths)))


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.dim() - 1))
