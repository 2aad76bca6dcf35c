"""Refined boxes hold every run, and are refined where that pays."""

from collections.abc import Callable
from dataclasses import replace

import torch
from attacks import in_ball
from bounds.test_bounds_facts import longest_moves
from bounds.test_bounds_lipschitz import deterministic
from bounds.test_bounds_receptive import BENDS, EVERY, SHAPES, Grower, bounds, plain
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import normal, seeded, uniform

from lipcert.bounds import Facts
from lipcert.bounds.refined import Refinement
from lipcert.bounds.state import State
from lipcert.network import NetworkBuilder, lower, simplify
from lipcert.network.activations import GroupMax, Sigmoid
from lipcert.network.operators import Dense, Select


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from(SHAPES), st.sampled_from([0.02, 0.2, 0.8]),
    st.sampled_from([0, 3]), st.booleans(), st.booleans(),
)  # fmt: skip
def test_refined_boxes_hold_every_run(
    seed: int, shape: Callable[[Grower], int], radius: float, steps: int, every: bool, images: bool
) -> None:
    grow = Grower(seed)
    network = grow.logits(grow.relu(shape(grow)))
    refinement = replace(EVERY if every else BENDS, steps=steps)
    bound, plain_ = bounds(network, refinement, images), bounds(network, None, images)
    assert any(subnetwork.receptive is not None for subnetwork in bound.subnetworks.values())
    x = uniform((3, 1, 2, 9, 9), grow.generator)
    eps = torch.full((3,), radius).double()
    centre = bound.propagation.anchors(x)
    _, state = bound.prepare_state(centre, eps, deterministic)
    _, before = plain_.prepare_state(centre, eps, deterministic)
    for _ in range(20):
        point = in_ball(x, eps, grow.generator)
        values = network.values(point.clamp(0, 1) if images else point)
        for i, layer in state.items():
            value = values[network.nodes[i].inputs[0] if i else 0]
            assert (value >= layer.lower).all()
            assert (value <= layer.upper).all()
    for i, layer in state.items():
        # Norms of smaller masks are a little larger at times.
        spare = 0.02 * (before[i].upper - before[i].lower)
        assert (layer.lower >= before[i].lower - spare).all()
        assert (layer.upper <= before[i].upper + spare).all()
        if not images:
            node = network.nodes[i].inputs[0] if i else 0
            moved = longest_moves(network, x, eps, node, layer, seed)
            assert (moved <= layer.radius * (1 + 1e-12) + 1e-14).all()


def test_the_extreme_of_a_neuron_stays_in_its_refined_box() -> None:
    """Of a layer behind one activation gradient descent comes near the box, from inside."""
    grow = Grower(4)
    node = grow.conv(grow.relu(grow.conv(0, outputs=4)))
    network = grow.logits(grow.relu(node))
    bound = bounds(network, Refinement(steps=30), False)
    x, eps = uniform((1, 1, 2, 9, 9), grow.generator), torch.full((1,), 0.3).double()
    centre = bound.propagation.anchors(x)
    _, state = bound.prepare_state(centre, eps, deterministic)
    layer = state[max(state)]
    here = centre.values[node].flatten()
    many = x.expand(here.numel(), *x.shape[1:])
    point = many.clone()
    for step in range(60):
        point = point.detach().requires_grad_(True)
        own = network.values(point)[node].flatten(1).diagonal()
        (slope,) = torch.autograd.grad(own.sum(), point)
        with torch.no_grad():
            size = slope.flatten(1).norm(dim=1).clamp(min=1e-300).reshape(-1, 1, 1, 1, 1)
            moved = point - many - 0.3 * 0.95**step * slope / size
            size = moved.flatten(1).norm(dim=1).clamp(min=1e-300).reshape(-1, 1, 1, 1, 1)
            point = many + moved * (0.3 * (1 - 1e-12) / size).clamp(max=1)
    reached = network.values(point)[node].flatten(1).diagonal()
    assert (reached >= layer.lower.flatten()).all()
    # Those that are off in the whole ball keep the box that they have.
    share = ((here - reached) / (here - layer.lower.flatten()))[layer.gain.flatten() != 0]
    assert float(share.median()) > 0.8
    assert len(share) > 40


def test_boxes_are_refined_where_a_few_of_them_pay() -> None:
    grow = Grower(5)
    network = grow.logits(grow.relu(plain(grow)))
    x, eps = uniform((2, 1, 2, 9, 9), grow.generator), torch.full((2,), 0.3).double()

    def of(refinement: Refinement) -> tuple[Facts, State]:
        bound = bounds(network, refinement, False)
        return bound.prepare_state(bound.propagation.anchors(x), eps, deterministic)

    _, full = of(EVERY)
    _, none = of(replace(EVERY, work=0.0))
    found, tried = of(replace(EVERY, work=0.0, tried=torch.inf, worth=0.0))
    _, paid = of(BENDS)
    last = max(full)

    def width(state: State) -> float:
        return float((state[last].upper - state[last].lower).sum())

    assert width(full) < width(paid) < width(tried) < width(none)
    assert all(bool((share > 0).all() and (share <= 1).all()) for share in found.shrunk.values())
    assert all(bool(share.isnan().all()) for share in of(EVERY)[0].shrunk.values())
    some = found.select(torch.tensor([1]))
    assert all(torch.equal(some.shrunk[i], share[1:]) for i, share in found.shrunk.items())


def test_wide_layers_of_comparisons_are_not_tried() -> None:
    """Boxes of differences shrink much, and tell the layers behind them next to nothing."""
    generator = seeded(5)
    builder = NetworkBuilder((1, 8))
    node = builder.operator(Dense.of(normal((8, 8), generator), None, (1, 8)), 0)
    pairs = Select.of(torch.arange(8).reshape(1, 2, 4), (1, 8))
    pooled = builder.activation(GroupMax(), builder.operator(pairs, node))
    last = builder.operator(Dense.of(normal((3, 2), generator), None, (1, 2)), pooled)
    network = simplify(lower(simplify(builder.build(last))))
    bound = bounds(network, replace(BENDS, work=0.0), False)
    x, eps = uniform((2, 1, 8), generator), torch.full((2,), 0.3).double()
    found, _ = bound.prepare_state(bound.propagation.anchors(x), eps, deterministic)
    assert len(bound.subnetworks) == 1
    assert all(bool(share.isnan().all()) for share in found.shrunk.values())


def test_of_smooth_activations_no_slopes_are_sought() -> None:
    """They are known only roughly there, and steps would gain nothing for their time."""
    generator = seeded(3)
    builder, node = NetworkBuilder((1, 6)), 0
    for _ in range(3):
        weight = normal((6, 6), generator)
        node = builder.activation(Sigmoid(), builder.operator(Dense.of(weight, None, (1, 6)), node))
    last = builder.operator(Dense.of(normal((3, 6), generator), None, (1, 6)), node)
    network, x = builder.build(last), uniform((2, 1, 6), generator)
    eps, states = torch.full((2,), 0.3).double(), []
    for steps in (0, 5):
        bound = bounds(network, replace(EVERY, steps=steps), False)
        states.append(bound.prepare_state(bound.propagation.anchors(x), eps, deterministic)[1])
    assert all(subnetwork.rough for subnetwork in bound.subnetworks.values())
    assert all(torch.equal(layer.lower, states[1][i].lower) for i, layer in states[0].items())
