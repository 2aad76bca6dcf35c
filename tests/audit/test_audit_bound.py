"""What the auditor's own bound says must hold at every point that is tried."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from audit_models import model, network, node, preprocessing, program
from hypothesis import given, settings
from hypothesis import strategies as st

from lipcert.audit.arithmetic import Arithmetic
from lipcert.audit.attack import Ball, candidates
from lipcert.audit.deployed import Deployed
from lipcert.audit.dual import Dual
from lipcert.audit.interpreter import Interpreter
from lipcert.audit.linear import Sparse
from lipcert.audit.matrix import Matrix
from lipcert.audit.operators import NotRead
from lipcert.audit.program import Affine
from lipcert.audit.reach import LONG, Norms, deployed_errors
from lipcert.audit.rule import PLAIN

REAL, SINGLE = Arithmetic.of("real"), Arithmetic.of("float32")
ACTIVATIONS = [("Relu", {}), ("LeakyRelu", {"alpha": 0.2}), ("Abs", {}), ("PRelu", {})]


def sparse(random: np.random.Generator, rows: int, columns: int) -> tuple[Matrix, np.ndarray]:
    dense = random.normal(size=(rows, columns)) * (random.random((rows, columns)) < 0.4)
    places = dense.nonzero()
    return Matrix.of(*places, dense[places], dense.shape), dense


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
def test_a_sparse_matrix_is_its_dense_twin(seed, rows, columns):
    random = np.random.default_rng(seed)
    matrix, dense = sparse(random, rows, columns)
    v, w = random.normal(size=(3, columns)).astype(LONG), random.normal(size=(2, rows))
    np.testing.assert_allclose(matrix @ v, v @ dense.T, atol=1e-12)
    np.testing.assert_allclose(matrix.transpose @ w, w @ dense, atol=1e-12)
    linear, rows = Sparse.of(matrix), torch.from_numpy(w)
    np.testing.assert_allclose(linear.back(rows).numpy(), w @ dense, atol=1e-12)
    np.testing.assert_allclose(linear.back(rows, "magnitudes"), w @ abs(dense), atol=1e-12)
    np.testing.assert_allclose(
        linear.forth(torch.from_numpy(v.astype(float)), "squares"), v @ dense.T**2, atol=1e-12
    )
    scale = random.uniform(0, 2, columns)
    norms = np.linalg.norm(dense * scale, axis=1)
    np.testing.assert_allclose(matrix.row_norms(scale), norms, atol=1e-12)
    chosen = np.flatnonzero(random.random(columns) < 0.6)
    np.testing.assert_array_equal(matrix.dense(chosen, scale), (dense * scale)[:, chosen])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.booleans())
def test_norms_are_upper_bounds_and_hardly_more(seed, rows, columns, large):
    random = np.random.default_rng(seed)
    matrix, dense = sparse(random, rows, columns)
    scale = random.choice([0.0, 1e-12, 0.5, 1.0], size=columns)
    exact = np.linalg.svd(dense * scale, compute_uv=False).max(initial=0.0)
    with pytest.MonkeyPatch.context() as patch:
        if large:
            patch.setattr("lipcert.audit.reach._LARGEST_GRAM", 0)
        norm = Norms()(matrix, scale)
    assert norm >= exact
    if not large:
        assert norm <= exact * (1 + 1e-6) + 1e-6


def sampled(seed: int, x: np.ndarray, eps: float, count: int) -> np.ndarray:
    """Points of the ball around ``x``, half of them on its sphere, in float64."""
    random = np.random.default_rng(seed)
    offsets = random.normal(size=(count, *x.shape))
    length = np.linalg.norm(offsets.reshape(count, -1), axis=1)
    share = eps * np.where(np.arange(count) % 2, 1, random.random(count)) / length
    return x + offsets * share.reshape(-1, *(1,) * x.ndim) * (1 - 1e-12)


@pytest.mark.parametrize(("activation", "attributes"), ACTIVATIONS)
@pytest.mark.parametrize("eps", [0.05, 0.3, 2.0])
def test_boxes_balls_and_margins_hold_at_sampled_and_attacked_points(activation, attributes, eps):
    seed = len(activation)
    made, front = network(seed, activation, **attributes), preprocessing((2, 4, 4), std=[0.5])
    image = np.random.default_rng(seed).uniform(size=(2, 4, 4)).astype(np.float32)
    matrices, reading = program(made, front), Interpreter(made, front.shape, softmax=False)

    def logits(pixels, reading=reading, front=front):
        flat = pixels.flatten(1).to(torch.float64)
        shift = torch.from_numpy(np.array(front.shift))
        values = flat * torch.from_numpy(np.array(front.scale)) + shift
        return reading(values.reshape(len(pixels), *front.shape))

    label = int(logits(torch.from_numpy(image[None])).argmax())
    dual = Dual(matrices, image.reshape(-1), eps, Norms())
    bound = dual.margins(label, REAL).astype(np.float64)
    points = sampled(seed, image, eps, 400)
    ball = Ball(image, label, eps)
    found = candidates(logits, ball, restarts=16, steps=15, seed=seed)
    points = np.concatenate([points, found])

    values = [points.reshape(len(points), -1).astype(LONG)]
    for step in matrices.steps:
        if isinstance(step, Affine):
            pairs = zip(step.matrices, step.inputs, strict=True)
            values.append(sum(m @ values[i] for m, i in pairs) + step.bias)
        else:
            values.append(step.function.values(values[step.input]))
    for value, reach in zip(values, dual.reaches, strict=True):
        change = (value - reach.centre).astype(np.float64)
        assert (change >= reach.low).all()
        assert (change <= reach.high).all()
        assert np.linalg.norm(change, axis=1).max() <= reach.ball
        inside = reach.scale > 0
        scaled = change[:, inside] / reach.scale[inside]
        assert np.linalg.norm(scaled, axis=1).max() <= reach.radius * (1 + 1e-9)
    gaps = values[matrices.output][:, [label]] - values[matrices.output]
    others = np.arange(gaps.shape[1]) != label
    smallest = gaps.min(0)[others].astype(np.float64)
    assert (bound[others] <= smallest).all()
    # Not empty words: at a small radius what holds by far is proven.
    if eps == 0.05:
        assert (bound[others][smallest > 0.8] > 0).all()


def test_a_linear_network_is_bounded_exactly():
    random = np.random.default_rng(0)
    weight = random.normal(size=(6, 3)).astype(np.float32)
    made, front = model([node("Gemm", "x w", "y")], (6,), w=weight), preprocessing((6,))
    x = random.uniform(size=6).astype(np.float32)
    z = x.astype(float) @ weight.astype(float)
    label, eps = int(z.argmax()), 0.25
    found = Dual(program(made, front), x, eps, Norms()).margins(label, REAL)
    for j in range(3):
        if j != label:
            rows = weight[:, label].astype(float) - weight[:, j]
            exact = z[label] - z[j] - eps * np.linalg.norm(rows)
            assert exact - 1e-11 <= float(found[j]) <= exact + 1e-15


def test_one_relu_is_bounded_by_the_exact_minimum_in_rational_arithmetic():
    """y = relu(x) − 1/2 against its negative: the smallest margin over [x − eps, x + eps]."""
    nodes = [node("Gemm", "x w b", "h"), node("Relu", "h", "r"), node("Gemm", "r v c", "y")]
    made = model(nodes, (1,), w=[[1.0]], b=[-0.5], v=[[1.0, -1.0]], c=[0.125, -0.125])
    front = preprocessing((1,))
    for x, eps in ((0.75, 0.125), (0.75, 0.5), (0.25, 0.5), (0.4375, 0.03125)):
        exact = 2 * (max(Fraction(x) - Fraction(eps) - Fraction(1, 2), 0) + Fraction(1, 8))
        point = np.array([x], np.float32)
        found = Dual(program(made, front), point, eps, Norms()).margins(0, REAL)
        assert Fraction(float(found[1])) <= exact
        assert found[1] >= float(exact) - 0.35


def test_the_error_of_the_deployed_network_covers_onnxruntime():
    """Against the own reading in float64, at the sample and in its ball; large biases cancel."""
    for seed in range(2):
        made, front = network(seed), preprocessing((2, 4, 4), mean=[100.0], std=[0.01])
        random = np.random.default_rng(seed)
        image = random.uniform(size=(2, 4, 4)).astype(np.float32)
        matrices = program(made, front)
        dual = Dual(matrices, image.reshape(-1), 0.5, Norms())
        points = sampled(seed, image, 0.4999, 60).astype(np.float32)
        reading = Interpreter(made, front.shape, softmax=False)
        exact = reading(torch.from_numpy(front(points))).numpy()
        seen = Deployed(made, front)(points)
        others = np.array([1, 2, 3])
        errors = deployed_errors(matrices, dual.reaches, SINGLE, 0, others)
        gaps = np.abs((seen[:, [0]] - seen[:, others]) - (exact[:, [0]] - exact[:, others]))
        assert (gaps.max(0) <= errors).all()
        assert errors.max() < 1e5 * gaps.max()
        assert (deployed_errors(matrices, dual.reaches, REAL, 0, others) == 0).all()
        half = deployed_errors(matrices, dual.reaches, Arithmetic.of("float64"), 0, others)
        assert (half < errors).all()


def test_nothing_is_proven_of_what_is_not_finite():
    nodes = [node("Gemm", "x w", "h"), node("Relu", "h", "r"), node("Gemm", "r v", "y")]
    made = model(nodes, (2,), w=np.full((2, 2), 1e30), v=[[3e38, 1.0], [3e38, 1.0]])
    x, front = np.array([0.5, 0.25], np.float32), preprocessing((2,))
    found = Dual(program(made, front), x, 0.1, Norms()).margins(0, SINGLE)
    assert not found.min() > 0
    ties = model(nodes, (2,), w=np.eye(2), v=np.ones((2, 2)))
    assert not Dual(program(ties, front), x, 0.0, Norms()).margins(0, SINGLE).min() > 0


def test_pixel_domain_boxes_are_narrower_and_hold():
    made, front = network(1), preprocessing((2, 4, 4))
    image = np.random.default_rng(1).choice([0.0, 1.0], size=(2, 4, 4)).astype(np.float32)
    matrices = program(made, front)
    free, kept = (
        Dual(matrices, image.reshape(-1), 0.3, Norms(), pixel_domain=p) for p in (False, True)
    )
    label = int(np.argmax(free.reaches[matrices.output].centre))
    points = sampled(2, image, 0.3, 200).clip(0, 1).astype(np.float32)
    smallest = PLAIN.lead(Deployed(made, front)(points), label).min()
    assert kept.margins(label, SINGLE).min() <= smallest
    assert kept.margins(label, SINGLE).min() >= free.margins(label, SINGLE).min() - 1e-2


@pytest.mark.parametrize("kind", ["Sigmoid", "Tanh"])
def test_other_activations_are_left_to_attacks(kind):
    nodes = [node("Gemm", "x w", "h"), node(kind, "h", "r"), node("Gemm", "r w", "y")]
    made = model(nodes, (2,), w=np.eye(2))
    with pytest.raises(NotRead, match=kind):
        program(made, preprocessing((2,)))
