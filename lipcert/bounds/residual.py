"""Residual blocks that do not expand, by their own algebra.

A block ``y = x + U σ(V x + b) + b'`` whose activation has slopes in [0, 1] costs ``1 + ‖U‖‖V‖`` by
norms. Where ``U`` is nearly ``−Vᵀ D`` with a diagonal ``D ≥ 0``, as in convex potential layers
(Meunier et al., ICML 2022) and SDP-based Lipschitz layers (Araujo et al., ICLR 2023), it costs next
to nothing. With ``v = V Δx``, ``ω = Δσ``, so that ``ω_i v_i ≥ ω_i²``, and ``E = U + Vᵀ D``:

    ‖Δx − Vᵀ D ω‖² = ‖Δx‖² − 2 vᵀ D ω + ‖Vᵀ D ω‖² ≤ ‖Δx‖² + (‖D^½ V‖² − 2) ‖D^½ ω‖²,

and ``‖D^½ ω‖ ≤ ‖D^½ V‖ ‖Δx‖``. With ``η = max(0, ‖D^½ V‖² − 2)``

    ‖Δy‖ ≤ ( (1 + η (2 + η))^½ + ‖E‖ ‖V‖ ) ‖Δx‖.

Any ``D`` is sound; the one that is taken fits the file's weights. Nothing is assumed of how these
were made: the norms are found from them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from lipcert.network import Network, NetworkBuilder, Segment, ancestors
from lipcert.network.activations import (
    Clip,
    Elementwise,
    Elu,
    PReLU,
    Sigmoid,
    Softplus,
    Tanh,
)
from lipcert.network.nodes import Sum
from lipcert.network.operators import (
    Convolution,
    Dense,
    Diagonal,
    Operator,
    TransposedConvolution,
)
from lipcert.norms import (
    Norm,
    SegmentNorms,
    absolute_norm,
    operator_norm,
    rough_norm,
    spectral_norm,
)
from lipcert.numbers import OUT64
from lipcert.rounding import FLOAT64

# Monotone, and nowhere steeper than 1 where ``lipschitz`` says so.
_MONOTONE = (Clip, Elu, Sigmoid, Softplus, Tanh)
Turned = Dense | Convolution
Layer = Turned | TransposedConvolution
# By their weights, so many at most.
_FACTORS: dict[bytes, float] = {}
# Factors kept, one a block and kind of norm: more than the deepest networks have blocks.
_KEPT = 256


@dataclass(frozen=True)
class Block:
    """``‖Δy‖ ≤ factor ‖Δx‖`` for ``x`` the value of node ``source``."""

    source: int
    factor: float


def residual_blocks(network: Network, *, fitting: bool = False) -> dict[int, Block]:
    """The blocks of this form, by the sums that end them; ``fitting``: only where ``V`` explains
    the most of ``U``, as others gain next to nothing and all take norms."""
    exact, found = network.exact, dict[int, Block]()
    for i in exact.sums:
        inputs = exact.nodes[i].inputs
        if len(inputs) == 2:
            for x, end in (inputs, inputs[::-1]):
                pair = _pair(exact, x, end)
                if pair is not None and (not fitting or _fits(*pair)):
                    found[i] = Block(x, _factor(*pair, rough=network.rough))
    return {i: block for i, block in found.items() if math.isfinite(block.factor)}


def _pair(network: Network, x: int, end: int) -> tuple[Turned, Turned] | None:
    """``V`` and ``Uᵀ`` of the block whose branch leads from ``x`` to ``end``, or None."""
    after, activation = _back(network, end, x)
    kind = network.nodes[activation].kind
    if not isinstance(kind, Elementwise) or not _contracts(kind):
        return None
    before, start = _back(network, network.nodes[activation].inputs[0], x)
    inner, outer = _joined(before), _joined(after)
    if start != x or outer is None or inner is None or isinstance(inner, TransposedConvolution):
        return None
    turned = _transposed(outer)
    if turned is None or not _same_geometry(inner, turned):
        return None
    return inner, turned


def _factor(inner: Turned, turned: Turned, *, rough: bool) -> float:
    """Found once for the same weights: it may take the norms of large matrices."""
    geometry = [value for value in vars(inner).values() if not isinstance(value, Tensor)]
    digest = hashlib.blake2b(repr((type(inner), geometry, rough)).encode())
    for weight in (inner.weight, turned.weight):
        digest.update(weight.contiguous().cpu().numpy().tobytes())
    key = digest.digest()
    if key not in _FACTORS:
        if len(_FACTORS) >= _KEPT:
            _FACTORS.clear()
        _FACTORS[key] = _found(inner, turned, rough)
    return _FACTORS[key]


def _found(inner: Turned, turned: Turned, rough: bool) -> float:
    v, u = inner.weight.double(), turned.weight.double()
    root = _spread(_fitted(u, v).sqrt(), v)
    weighted = replace(inner, weight=root * v, bias=None)
    scaled = _structural(weighted)
    if scaled**2 > 2:
        # By frequencies it is a little too large: only a nearer norm tells whether it passes √2.
        alone = _alone(weighted)
        nearer = rough_norm(alone.unweighted()) if rough else SegmentNorms.of(alone.segment)
        scaled = min(scaled, nearer if isinstance(nearer, float) else nearer.norm.value)
    rest = (u + root.square() * v).abs() + 8 * FLOAT64 * (u.abs() + root.square() * v.abs())
    off = absolute_norm(replace(inner, weight=rest, bias=None))
    # A difference is rounded.
    excess = OUT64.up(max(0.0, OUT64.times(scaled, scaled) - 2), 1)
    square = OUT64.add(OUT64.times(excess, OUT64.add(excess, 2.0)), 1.0)
    plain = _structural(replace(inner, weight=v, bias=None))
    return OUT64.add(OUT64.up(math.sqrt(square), 1), OUT64.times(off, plain))


def _fitted(u: Tensor, v: Tensor) -> Tensor:
    """The diagonal of ``D``, by least squares."""
    rows = tuple(range(1, v.dim()))
    fitted = -(u * v).sum(rows) / v.square().sum(rows).clamp(min=FLOAT64)
    return fitted.clamp(min=0)


def _fits(inner: Turned, turned: Turned) -> bool:
    """Whether ``‖U + Vᵀ D‖_F² ≤ ‖U‖_F² / 2``."""
    v, u = inner.weight.double(), turned.weight.double()
    rest = u + _spread(_fitted(u, v), v) * v
    return bool(2 * rest.square().sum() <= u.square().sum())


def _contracts(kind: Elementwise) -> bool:
    """Whether all its slopes lie in [0, 1]."""
    if isinstance(kind, PReLU):
        return bool(((kind.slope >= 0) & (kind.slope <= 1)).all())
    return isinstance(kind, _MONOTONE) and kind.lipschitz <= 1


def _back(network: Network, node: int, stop: int) -> tuple[list[Operator], int]:
    """The operators that lead to a node, from the first on, and where they start: at ``stop``, or
    at what is no operator."""
    passed: list[Operator] = []
    while node != stop and isinstance(kind := network.nodes[node].kind, Operator):
        passed.append(kind)
        node = network.nodes[node].inputs[0]
    return passed[::-1], node


def _joined(operators: Sequence[Operator]) -> Layer | None:
    """One layer with the scales before and after it in its weights, its bias left out."""
    layers = [kind for kind in operators if isinstance(kind, Layer)]
    if len(layers) != 1 or not all(isinstance(kind, Layer | Diagonal) for kind in operators):
        return None
    layer, weight = layers[0], layers[0].weight
    place = [kind is layer for kind in operators].index(True)
    for position, kind in enumerate(operators):
        if isinstance(kind, Diagonal) and kind.scale is not None:
            channel = _per_channel(kind)
            if channel is None:
                return None
            # A matrix has its outputs first; a transposed convolution its inputs.
            first = (position > place) != isinstance(layer, TransposedConvolution)
            if not first and not isinstance(layer, Dense) and layer.groups != 1:
                return None
            shape = [1] * weight.dim()
            shape[0 if first else 1] = -1
            weight = weight * channel.expand(weight.shape[0 if first else 1]).reshape(shape)
    return replace(layer, weight=weight, bias=None)


def _per_channel(kind: Diagonal) -> Tensor | None:
    """A scale as one number a channel: axis 1 of an image, the last one of a vector."""
    assert kind.scale is not None
    rank = len(kind.in_shape)
    axis = 1 if rank > 2 else rank - 1
    padded = kind.scale.reshape((1,) * (rank - kind.scale.dim()) + tuple(kind.scale.shape))
    if any(size != 1 for k, size in enumerate(padded.shape) if k != axis):
        return None
    return padded.flatten()


def _transposed(layer: Layer) -> Turned | None:
    """The layer whose transpose this one is."""
    if isinstance(layer, Dense):
        return Dense.of(layer.weight.mT, None, layer.out_shape)
    if isinstance(layer, TransposedConvolution):
        return layer.convolution
    if layer.groups != 1 or any(step != 1 for step in layer.stride):
        return None
    turned = layer.weight.flip(tuple(range(2, layer.weight.dim()))).transpose(0, 1)
    reach = [gap * (width - 1) for gap, width in zip(layer.dilation, turned.shape[2:], strict=True)]
    pads = [(r - a, r - b) for r, (a, b) in zip(reach, layer.padding, strict=True)]
    return Convolution.of(
        turned.contiguous(), None, layer.out_shape, padding=pads, dilation=layer.dilation
    )


def _same_geometry(one: Turned, other: Turned) -> bool:
    if type(one) is not type(other) or one.weight.shape != other.weight.shape:
        return False
    if one.in_shape != other.in_shape or one.out_shape != other.out_shape:
        return False
    return isinstance(one, Dense) or (
        isinstance(one, Convolution)
        and isinstance(other, Convolution)
        and (one.stride, one.padding, one.dilation, one.groups)
        == (other.stride, other.padding, other.dilation, other.groups)
    )


def _spread(rows: Tensor, like: Tensor) -> Tensor:
    return rows.reshape(-1, *(1,) * (like.dim() - 1))


def _structural(operator: Operator) -> float:
    """An upper bound of its norm, with what its weights were rounded by on the way."""
    return OUT64.add(operator_norm(operator), 16 * FLOAT64 * absolute_norm(operator))


def _alone(operator: Operator) -> SegmentNorms:
    """The operator as a segment of its own, its norm not found yet."""
    builder = NetworkBuilder(operator.in_shape)
    network = builder.build(builder.operator(operator, 0))
    return SegmentNorms(Segment(network, 0, network.output), Norm(math.inf, "unknown"))


def tail_of(network: Network, blocks: dict[int, Block]) -> int | None:
    """The last block's end, where every way to the logits leads through it and on by affine
    operators alone."""
    way = ancestors(network, network.output)
    for end in sorted(blocks, reverse=True):
        behind = [i for i in way if i > end]
        inside = all(j >= end for i in behind for j in network.nodes[i].inputs)
        affine = all(isinstance(network.nodes[i].kind, Operator | Sum) for i in behind)
        if end in way and inside and affine:
            return end
    return None


@dataclass(frozen=True, eq=False)
class Tail:
    """The affine rest of a network behind a value of which a constant from the input is known:
    ``m_j(x) ≥ m_j(x0) − ε L ‖row_y − row_j‖₂``."""

    rows: Tensor
    noise: Tensor
    constant: float

    @property
    def product(self) -> float:
        """An upper bound of the network's Lipschitz constant."""
        spread = float(OUT64.length(self.noise.reshape(1, -1))[0])
        norm = OUT64.add(float(spectral_norm(self.rows[None])[0]), spread)
        return OUT64.times(norm, self.constant)
