"""What was prepared at one radius must hold at every smaller one, for the worst point too."""

from dataclasses import replace

import pytest
import torch
from attacks import in_ball
from bounds.test_bounds_dual import Case
from bounds.test_bounds_lipschitz import deterministic
from laws import seeded

from lipcert.bounds import AnchoredBound, FactPlan, Layers
from lipcert.bounds.state import Layer
from lipcert.network import Network, NetworkBuilder
from lipcert.network.activations import relu
from lipcert.network.operators import Dense
from lipcert.norms import SegmentNorms


def longest_moves(
    network: Network, x: torch.Tensor, eps: torch.Tensor, node: int, layer: Layer, seed: int
) -> torch.Tensor:
    """The largest ``‖M Δz‖`` of an activation's input that gradient ascent finds: ``(B,)``."""
    best = torch.zeros_like(eps)
    point, shape = in_ball(x, eps, seeded(seed)), (-1, *(1,) * (x.dim() - 1))
    for _ in range(25):
        point = point.detach().requires_grad_(True)
        moved = (network.values(point)[node] - layer.anchor) * layer.varying
        length = moved.flatten(1).norm(dim=1)
        best = torch.maximum(best, length.detach())
        (slope,) = torch.autograd.grad(length.sum(), point)
        size = slope.flatten(1).norm(dim=1).clamp(min=1e-300).reshape(shape)
        with torch.no_grad():
            step = 0.5 * (point - x) + slope / size * eps.reshape(shape)
            norm = step.flatten(1).norm(dim=1).clamp(min=1e-300)
            point = x + step * (eps * (1 - 1e-12) / norm).reshape(shape)
    return best


@pytest.mark.parametrize("seed", range(3))
def test_no_layer_moves_out_of_the_ball_of_a_smaller_radius(seed: int) -> None:
    case = Case(seed)
    for name in ("chains", "narrow"):
        for radius in (0.05, 0.3):
            prepared, _ = case.prepared(name, radius)
            for share in (0.3, 0.8, 1.0):
                eps = case.eps(radius * share)
                state = case.bounds[name].state(case.centre, eps, prepared)
                for i, layer in state.items():
                    node = case.network.nodes[i].inputs[0] if i else 0
                    moved = longest_moves(case.network, case.x, eps, node, layer, seed)
                    assert (moved <= layer.radius * (1 + 1e-12) + 1e-14).all()


@pytest.mark.parametrize("seed", range(12))
def test_norms_are_kept_with_gains_and_masks_that_are_theirs(seed: int) -> None:
    """A norm ``‖M A diag(w)‖`` bounds ``‖M Δz‖ / ‖Δσ / w‖`` for gains up to ``w`` alone. The
    enclosures of smaller boxes need not be smaller: of Sigmoid they were larger by 5 % here."""
    case = Case(seed)
    for radius in (0.02, 0.3, 2.0):
        prepared, _ = case.prepared("plain", radius)
        for share in (1.0, 1 - 1e-12, 0.9, 0.3, 1e-3, 1e-9):
            state = case.bounds["plain"].state(case.centre, case.eps(radius * share), prepared)
            for i in case.network.activations:
                assert (state[i].gain <= prepared.gains[i]).all()
                assert torch.equal(state[i].varying, prepared.masks[i])


def test_a_chain_counts_neurons_that_fall_silent_below_its_radius() -> None:
    """``z = x + 10 − (2/3) relu(4x − 3)`` from ``x = 1/2``: the second neuron can vary at radius 1,
    where its secants lie in [0, 3/4], and not at 0.1. With their middle 3/8 the chain from the
    input vanishes, and all of ``Δz = Δx`` is what that neuron is off its middle."""
    builder = NetworkBuilder((1, 1))

    def dense(node: int, weight: list[list[float]], bias: list[float]) -> int:
        operator = Dense.of(
            torch.tensor(weight).double(), torch.tensor(bias).double(), builder.shape(node)
        )
        return builder.operator(operator, node)

    node = builder.activation(relu(), dense(0, [[1.0], [4.0]], [10.0, -3.0]))
    node = builder.activation(relu(), dense(node, [[1.0, -2 / 3]], [0.0]))
    network = builder.build(dense(node, [[1.0], [0.0]], [0.0, 0.0]))
    layers = Layers.of(network)
    norms = {(edge.source, edge.sink): SegmentNorms.of(edge) for edge in layers.edges}
    bound = AnchoredBound.of(layers, norms)
    x, one = torch.full((1, 1, 1), 0.5).double(), torch.ones(1).double()
    centre = bound.propagation.centre(x)
    rough = network.to(dtype=torch.float32)
    bound = replace(bound, rough=rough, plan=FactPlan(refinement=None))
    prepared = bound.prepare(centre, one, deterministic)
    state = bound.state(centre, 0.1 * one, prepared)
    assert float(state[max(state)].radius) >= 0.1
