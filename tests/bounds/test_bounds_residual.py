"""Residual blocks: no pair of points is moved apart by more than their own algebra says."""

from __future__ import annotations

import pytest
import torch
from laws import normal, seeded
from torch import Tensor

from lipcert.bounds import GlobalBound, Layers, LocalBound
from lipcert.bounds.residual import residual_blocks
from lipcert.network import Network, NetworkBuilder, simplify
from lipcert.network.activations import Activation, PReLU, Sigmoid, Tanh, absolute, relu
from lipcert.network.operators import Convolution, Dense, Diagonal, Select, TransposedConvolution
from lipcert.norms import SegmentNorms

NUMBER = torch.float64
PADS = ((1, 1), (1, 1))
# Differences of near points are rounded.
ROUNDED = 1 + 1e-9


def dense_block(
    w: Tensor, d: Tensor, kind: Activation, *, sign: float = -1.0, off: Tensor | None = None
) -> Network:
    """``x + sign Wᵀ D σ(W x + b)``, with something added to ``Wᵀ D``."""
    shape = (w.shape[1],)
    builder = NetworkBuilder(shape)
    bias = normal((w.shape[0],), seeded(3))
    node = builder.activation(kind, builder.operator(Dense.of(w, bias, shape), 0))
    outer = sign * w.mT * d + (0 if off is None else off)
    node = builder.operator(Dense.of(outer, None, (w.shape[0],)), node)
    return builder.build(builder.sum([0, node]))


def convolution_block(seed: int, scale: float, *, as_convolution: bool = False) -> Network:
    """SLL on images, as exported: convolution, ReLU, a scale a channel, transposed convolution."""
    shape, w = (1, 3, 5, 5), normal((6, 3, 3, 3), seeded(seed))
    layer = Convolution.of(w, normal((6,), seeded(seed + 1)), shape, padding=PADS)
    builder = NetworkBuilder(shape)
    node = builder.activation(relu(), builder.operator(layer, 0))
    # ‖V‖² by Schur's test on all taps: more than enough.
    t = w.abs().sum((1, 2, 3)) * w.abs().sum((0, 2, 3)).max()
    by = (scale * 2 / t).reshape(-1, 1, 1)
    node = builder.operator(Diagonal.of(by, None, builder.shape(node)), node)
    if as_convolution:
        turned = w.flip(2, 3).transpose(0, 1).contiguous()
        back = Convolution.of(turned, None, builder.shape(node), padding=PADS)
        node = builder.operator(back, node)
    else:
        node = builder.operator(
            TransposedConvolution.of(
                w, None, builder.shape(node), (5, 5), stride=(1, 1), padding=PADS, dilation=(1, 1)
            ),
            node,
        )
    minus = torch.tensor(-1.0, dtype=NUMBER)
    node = builder.operator(Diagonal.of(minus, None, shape), node)
    return builder.build(builder.sum([0, node]))


def worst_ratio(network: Network, steps: int = 300) -> float:
    """The largest stretch between two near points that ascent finds."""
    x = 2 * normal((64, *network.in_shape), seeded(5))
    v = normal((64, *network.in_shape), seeded(6))
    step, best = 1e-3, 0.0
    for k in range(steps):
        v = v / v.flatten(1).norm(dim=1).reshape(-1, *(1,) * (v.dim() - 1))
        x, v = x.detach(), v.detach().requires_grad_()
        moved = (network.values(x + step * v)[-1] - network.values(x)[-1]) / step
        size = moved.flatten(1).norm(dim=1)
        best = max(best, float((size / v.flatten(1).norm(dim=1)).max().detach()))
        (slope,) = torch.autograd.grad(size.sum(), v)
        v = slope
        if k % 20 == 19:
            # From somewhere else, along the best directions.
            x = x + normal(x.shape, seeded(k))
    return best


def factor(network: Network) -> float:
    [block] = residual_blocks(network).values()
    assert block.source == 0
    return block.factor


@pytest.mark.parametrize("kind", [relu(), Tanh(), Sigmoid(), PReLU(torch.tensor(0.3).double())])
@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_a_correctly_built_block_does_not_expand(kind: Activation, scale: float) -> None:
    w = normal((12, 8), seeded(0))
    d = torch.full((12,), scale * 2 / float(torch.linalg.matrix_norm(w, 2)) ** 2, dtype=NUMBER)
    network = dense_block(w, d, kind)
    found = factor(network)
    assert found <= 1 + 1e-9
    assert worst_ratio(network, 60) <= found * ROUNDED


@pytest.mark.parametrize("as_convolution", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_block_on_images(seed: int, as_convolution: bool) -> None:
    network = convolution_block(seed, 1.0, as_convolution=as_convolution)
    found = factor(network)
    assert found <= 1 + 1e-9
    assert worst_ratio(network, 40) <= found * ROUNDED


@pytest.mark.parametrize("seed", range(12))
def test_blocks_that_are_made_against_us(seed: int) -> None:
    """Too large by little or by much, one neuron alone, the two matrices apart: the factor grows,
    and no stretch that is found passes it."""
    generator = seeded(seed)
    w = normal((10, 7), generator)
    d = torch.full((10,), 2 / float(torch.linalg.matrix_norm(w, 2)) ** 2, dtype=NUMBER)
    off = None
    match seed % 4:
        case 0:
            d = d * (1 + 10.0 ** -(seed % 6))
        case 1:
            d[0] *= 30
        case 2:
            off = 10.0 ** -(1 + seed // 4) * normal((7, 10), generator)
        case 3:
            w, d = 1.05 * w, 1.2 * d
    network = dense_block(w, d, relu(), off=off)
    found = factor(network)
    assert worst_ratio(network) <= found * ROUNDED
    assert found > 1


def test_what_is_no_such_block_is_none() -> None:
    w = normal((6, 4), seeded(1))
    d = torch.full((6,), 0.05, dtype=NUMBER)
    assert not residual_blocks(dense_block(w, d, absolute()))
    assert not residual_blocks(dense_block(w, d, PReLU(torch.tensor(-0.1).double())))
    # The sign turned: it is a block, and found to expand.
    assert factor(dense_block(w, d, relu(), sign=1.0)) > 1


def chain(depth: int) -> Network:
    builder = NetworkBuilder((1, 3, 5, 5))
    node = 0
    for seed in range(depth):
        block = convolution_block(seed, 1.0)
        place = {0: node}
        for i, made in enumerate(block.nodes[1:], 1):
            before = [place[j] for j in made.inputs]
            if isinstance(made.kind, Activation):
                place[i] = builder.activation(made.kind, before[0])
            elif len(before) == 2:
                place[i] = builder.sum(before)
            else:
                place[i] = builder.operator(made.kind, before[0])  # type: ignore[arg-type]
        node = place[block.output]
    node = builder.operator(Select.reshape(builder.shape(node), (75,)), node)
    rows = normal((4, 75), seeded(9))
    return builder.build(builder.operator(Dense.of(rows, None, (75,)), node))


def test_a_network_of_blocks_gets_its_own_certificate() -> None:
    """``margin / (ε ‖w_y − w_j‖)``, from both published bounds, whatever the depth."""
    network = simplify(chain(4))
    layers = Layers.of(network)
    norms = {(edge.source, edge.sink): SegmentNorms.of(edge) for edge in layers.edges}
    x = normal((3, 1, 3, 5, 5), seeded(2))
    labels = network.logits(x).argmax(1)
    rows = next(kind.weight for kind in network.operators.values() if isinstance(kind, Dense))
    eps = torch.full((3,), 0.01, dtype=NUMBER)
    logits = network.logits(x)
    clean = logits.gather(1, labels[:, None]) - logits
    distance = (rows[labels][:, None] - rows[None]).norm(dim=2)
    own = clean - 0.01 * distance
    for kind in (GlobalBound, LocalBound):
        bound = kind.of(layers, norms)
        centre = bound.propagation.centre(x)

        def whole(norm, mapping, number):
            return norm.from_whole(mapping)

        facts = bound.prepare(centre, eps, whole)
        found = bound.margins(centre, labels, eps, facts)
        assert bool((found >= own - 1e-6).all())
        assert bool((found <= clean + 1e-9).all())
        for k in range(20):
            step = normal(x.shape, seeded(k))
            step = 0.01 * step / step.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1, 1)
            moved = network.logits(x + step)
            assert bool((moved.gather(1, labels[:, None]) - moved >= found - 1e-12).all())
