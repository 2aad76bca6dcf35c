"""Training bounds: no sampled point is below them, and their gradients are those of the bound."""

from copy import deepcopy

import pytest
import torch
from train_models import GRAPHS, SHAPE, recipe, trainable

from lipcert.network import Segment
from lipcert.train.bounds import BOUNDS
from lipcert.train.estimate import inner_edges
from lipcert.train.norms import WarmNorms
from lipcert.train.objective import Objective

CASES = [
    ("conv", "keep"),
    ("conv", "clipped"),
    ("conv", "maxmin-clipped"),
    ("residual", "clipped"),
    ("sigmoid", "keep"),
]


def images(count=6):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(4))


def bounded(bound_name, made, x, labels, eps, steps=40):
    bound, norms = BOUNDS[bound_name](), WarmNorms(steps=steps)
    network = made.network()
    norms.prepare(bound.prepare(network))
    return bound(network, x, labels, torch.full((len(x),), eps), norms)


def margins(logits, labels):
    return logits.gather(1, labels[:, None]) - logits


def nearby(x, eps, generator):
    """Points of the balls, on their surface more often than not."""
    noise = torch.randn(x.shape, generator=generator)
    size = torch.rand(len(x), generator=generator).pow(0.1) * eps
    return x + noise * (size / noise.flatten(1).norm(dim=1)).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize(("name", "activation"), CASES)
@pytest.mark.parametrize("bound", BOUNDS)
def test_no_point_of_the_ball_is_below_the_margins(bound, name, activation):
    made, x = trainable(GRAPHS[name], activation), images()
    labels = made(x).argmax(1).roll(1)
    generator = torch.Generator().manual_seed(5)
    for eps in (0.05, 0.4, 2.0):
        lower = bounded(bound, made, x, labels, eps).margins.detach()
        assert torch.equal(lower.gather(1, labels[:, None]), torch.zeros(len(x), 1))
        for _ in range(6):
            point = nearby(x, eps, generator).requires_grad_(True)
            for _ in range(3):
                # Downhill on the smallest margin, back onto the ball.
                found = margins(made(point), labels)
                assert bool((found.detach() >= lower - 1e-3 * (1 + lower.abs())).all())
                slope = torch.autograd.grad((found - lower).amin(1).sum(), point)[0]
                slope = slope / slope.flatten(1).norm(dim=1).clamp(min=1e-9).reshape(-1, 1, 1, 1)
                moved = point.detach() - eps * slope - x
                length = moved.flatten(1).norm(dim=1).clamp(min=1e-9).reshape(-1, 1, 1, 1)
                point = (x + moved * (eps / length).clamp(max=1)).requires_grad_(True)


@pytest.mark.parametrize(("name", "activation"), CASES)
@pytest.mark.parametrize("bound", BOUNDS)
def test_at_radius_0_the_margins_are_those_of_the_sample(bound, name, activation):
    made, x = trainable(GRAPHS[name], activation), images()
    labels = torch.arange(len(x)) % 3
    found = bounded(bound, made, x, labels, 0.0)
    assert torch.allclose(found.margins, margins(made(x), labels), atol=1e-4)
    assert torch.allclose(found.logits, made(x), atol=1e-5)


@pytest.mark.parametrize(("name", "activation"), CASES)
def test_the_dual_is_never_below_the_anchored_bound_and_shrinks_with_the_radius(name, activation):
    made, x = trainable(GRAPHS[name], activation), images()
    labels = made(x).argmax(1)
    before = None
    for eps in (0.1, 0.3, 0.9):
        anchored = bounded("anchored", made, x, labels, eps).margins
        dual = bounded("dual", made, x, labels, eps).margins
        assert bool((dual >= anchored - 1e-4).all())
        if before is not None:
            assert bool((dual <= before + 1e-3).all())
        before = dual


@pytest.mark.parametrize(("name", "activation"), CASES)
@pytest.mark.parametrize("bound", BOUNDS)
def test_gradients_are_finite_and_point_downhill(bound, name, activation):
    made, x = trainable(GRAPHS[name], activation), images()
    labels = made(x).argmax(1)

    def value():
        return bounded(bound, made, x, labels, 0.2).margins.sum()

    value().backward()
    gradients = [p.grad for p in made.tensors]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)
    size = torch.stack([g.norm() for g in gradients]).norm()
    step = 5e-4
    start = float(value().detach())
    with torch.no_grad():
        for tensor, gradient in zip(made.tensors, gradients, strict=True):
            tensor.add_(step * gradient / size)
    rise = float(value().detach()) - start
    # Kinks and maxima bend it a little.
    assert rise == pytest.approx(step * float(size), rel=0.25)


def test_boxes_hold_what_activations_see():
    made, x = trainable(GRAPHS["conv"], "clipped"), images()
    labels = made(x).argmax(1)
    generator = torch.Generator().manual_seed(6)
    for bound in BOUNDS:
        found = bounded(bound, made, x, labels, 0.5)
        # The product of norms needs none.
        assert bool(found.boxes) == (bound != "global")
        for _ in range(20):
            values = found.network.values(nearby(x, 0.5, generator))
            for node, (low, high) in found.boxes.items():
                seen = values[found.network.nodes[node].inputs[0]]
                assert bool((seen >= low - 1e-4).all())
                assert bool((seen <= high + 1e-4).all())


@pytest.mark.parametrize("bound", BOUNDS)
def test_mixed_precision_is_off_in_the_bound(bound):
    made, x = trainable(GRAPHS["conv"], "clipped"), images()
    labels = made(x).argmax(1)
    objective = Objective(made, recipe(bound=bound))
    other = deepcopy(objective)
    plain = made(x)
    loss, totals = objective(x, labels, 0.3, 0.0)
    loss.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.equal(made(x), plain)
        mixed, mixed_totals = other(x, labels, 0.3, 0.0)
    mixed.backward()
    assert torch.equal(mixed, loss)
    assert torch.equal(mixed_totals, totals)
    for one, two in zip(made.parameters(), other.trainable.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)


def segment_of(made):
    network = made.network()
    return next(edge for edges in inner_edges(network).values() for edge in edges)


def test_norms_follow_the_exact_ones():
    made = trainable(GRAPHS["conv"])
    segment = segment_of(made)
    matrix = segment.rows().flatten(1).detach()
    generator = torch.Generator().manual_seed(8)
    inner = torch.rand(5, *segment.in_shape, generator=generator)
    outer = (torch.rand(5, *segment.out_shape, generator=generator) > 0.5).float()
    norms = WarmNorms(steps=2)
    whole, local = norms.whole(segment), norms.local(segment, inner, outer)
    for _ in range(40):
        whole, local = norms.whole(segment), norms.local(segment, inner, outer)
    exact = torch.linalg.matrix_norm(matrix, ord=2)
    assert float(whole.detach()) == pytest.approx(float(exact), rel=1e-3)
    masked = outer.flatten(1)[:, :, None] * matrix * inner.flatten(1)[:, None]
    truth = torch.linalg.matrix_norm(masked, ord=2)
    # From below, and close: the start is shared, two steps are each sample's own.
    assert bool((local <= truth * 1.0001).all())
    assert bool((local >= truth * 0.9).all())


def test_a_shared_vector_that_was_lost_comes_back():
    made = trainable(GRAPHS["conv"])
    segment = segment_of(made)
    ones = (torch.ones(2, *segment.in_shape), torch.ones(2, *segment.out_shape))
    norms = WarmNorms(steps=3)
    nothing = torch.zeros_like(ones[1])
    assert float(norms.local(segment, ones[0], nothing).detach().max()) < 1e-5
    for _ in range(30):
        found = norms.local(segment, *ones)
    exact = torch.linalg.matrix_norm(segment.rows().flatten(1), ord=2)
    assert float(found.detach().min()) == pytest.approx(float(exact.detach()), rel=0.02)


def test_a_layer_of_zeros_does_not_keep_a_norm_of_zero():
    made = trainable(GRAPHS["conv"])
    place = made.names.index("c.w")
    kept = made.tensors[place].detach().clone()
    norms = WarmNorms()
    with torch.no_grad():
        made.tensors[place].zero_()
    assert float(norms.whole(segment_of(made)).detach()) < 1e-6
    with torch.no_grad():
        made.tensors[place].copy_(kept)
    segment: Segment = segment_of(made)
    for _ in range(30):
        found = norms.whole(segment)
    exact = torch.linalg.matrix_norm(segment.rows().flatten(1), ord=2)
    assert float(found.detach()) == pytest.approx(float(exact.detach()), rel=0.02)
