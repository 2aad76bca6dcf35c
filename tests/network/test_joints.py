"""Every joint against sampling, autograd, its dense twin and exact rational arithmetic."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from laws import JOINT_CASES, joint_anchors, normal, seeded, uniform
from torch import Tensor

from lipcert.network.joints import (
    InverseLength,
    Joint,
    MatrixProduct,
    Product,
    Quotient,
    Softmax,
    Standardise,
)
from lipcert.rounding import DOUBLE, SINGLE

CASES = pytest.mark.parametrize("name", list(JOINT_CASES))
WIDTHS = (1e-9, 1e-6, 1e-3, 1e-2, 0.1, 1.0)
Boxes = list[tuple[Tensor, Tensor]]


def boxes_around(anchors: list[Tensor], width: float, seed: int) -> Boxes:
    """Uneven ones, some of whose sides are points."""
    boxes = []
    for k, anchor in enumerate(anchors):
        sides = [width * uniform(anchor.shape, seeded(seed + 2 * k + s)) for s in (0, 1)]
        still = uniform(anchor.shape, seeded(seed + 100 + k)) < 0.2
        low, high = (torch.where(still, 0.0, side) for side in sides)
        boxes.append((anchor - low, anchor + high))
    return boxes


def points_in(boxes: Boxes, seed: int) -> list[Tensor]:
    """Inside, and at corners."""
    points, generator = [], seeded(seed)
    corner = seed % 2 == 0
    for low, high in boxes:
        share = uniform(low.shape, generator)
        share = (share > 0.5).double() if corner else share
        points.append(torch.minimum(torch.maximum(low + share * (high - low), low), high))
    return points


def rounding_of(joint: Joint, values: list[Tensor]) -> Tensor:
    """What computing ``f`` in float64 may add, where that is known."""
    return joint.rounding([(value, value) for value in values], DOUBLE)


def dense(joint: Joint, anchors: list[Tensor]) -> Tensor:
    """``f'`` by autograd, ``(outputs, all inputs)``, of a batch of one."""
    parts = torch.autograd.functional.jacobian(joint.value, tuple(anchors))
    outputs = math.prod(joint.out_shape)
    return torch.cat([part.reshape(outputs, -1) for part in parts], 1)


@CASES
def test_the_derivative_is_that_of_autograd_and_its_transpose_the_adjoint(name: str) -> None:
    case = JOINT_CASES[name]
    joint = case[0]
    for seed in range(5):
        anchors = joint_anchors(case, 1, seeded(seed))
        line, twin = joint.derivative(anchors), dense(joint, anchors)
        vectors = [normal((1, 7, *shape), seeded(seed + 9)) for shape in joint.in_shapes]
        flat = torch.cat([v.reshape(7, -1) for v in vectors], 1)
        found = line.apply(vectors).reshape(7, -1)
        scale = twin.abs().sum() + 1
        assert torch.allclose(found, flat @ twin.mT, rtol=1e-8, atol=1e-10 * scale)
        forms = normal((1, 4, *joint.out_shape), seeded(seed + 19))
        back = torch.cat([part.reshape(4, -1) for part in line.transpose(forms)], 1)
        assert torch.allclose(back, forms.reshape(4, -1) @ twin, rtol=1e-8, atol=1e-10 * scale)
        # The adjoint identity, to rounding.
        one = (forms.reshape(4, 1, -1) * found[None]).sum(2)
        other = back @ flat.mT
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-11 * scale)


@CASES
def test_magnitudes_and_steepness_are_above_those_of_the_dense_twin(name: str) -> None:
    case = JOINT_CASES[name]
    joint = case[0]
    anchors = joint_anchors(case, 1, seeded(3))
    line, twin = joint.derivative(anchors), dense(joint, anchors)
    vectors = [uniform((1, 5, *shape), seeded(8)) for shape in joint.in_shapes]
    flat = torch.cat([v.reshape(5, -1) for v in vectors], 1)
    slack = 1e-9 * (twin.abs().sum() + 1)
    assert bool((line.magnitude(vectors).reshape(5, -1) >= flat @ twin.abs().mT - slack).all())
    forms = uniform((1, 5, *joint.out_shape), seeded(9))
    back = torch.cat([part.reshape(5, -1) for part in line.transpose_magnitude(forms)], 1)
    assert bool((back >= forms.reshape(5, -1) @ twin.abs() - slack).all())
    parts = twin.split([math.prod(shape) for shape in joint.in_shapes], 1)
    norms = line.steepness(joint.in_shapes, joint.out_shape, anchors[0])
    for part, norm in zip(parts, norms, strict=True):
        assert float(norm) * (1 + 1e-9) + 1e-9 >= float(torch.linalg.matrix_norm(part.abs(), 2))


@CASES
def test_images_and_remainders_hold_every_sampled_point(name: str) -> None:
    case = JOINT_CASES[name]
    joint = case[0]
    for number, width in enumerate(WIDTHS):
        anchors = joint_anchors(case, 6, seeded(number))
        # Within the function's own domain.
        width = min(width, 0.9 * min(abs(case[1]), abs(case[2])))
        boxes = boxes_around(anchors, width, 10 * number)
        low, high = joint.image(boxes)
        rest, (below, above) = joint.remainder(anchors, boxes), joint.remainders(anchors, boxes)
        line, here = joint.derivative(anchors), joint.value(*anchors)
        assert not bool(rest.isnan().any())
        assert torch.equal(rest, torch.maximum(below, above))
        shapes = {t.shape for t in (low, high, rest, here, rounding_of(joint, anchors))}
        assert shapes == {(6, *joint.out_shape)}
        for seed in range(12):
            points = points_in(boxes, seed)
            value = joint.value(*points)
            noise = rounding_of(joint, points)
            assert bool(((low - noise <= value) & (value <= high + noise)).all())
            moved = [p - a for p, a in zip(points, anchors, strict=True)]
            off = value - here - line.once(moved)
            noise = (
                noise
                + rounding_of(joint, anchors)
                + 64 * DOUBLE.unit * (line.magnitude_once([m.abs() for m in moved]) + here.abs())
            )
            assert bool(((-below - noise <= off) & (off <= above + noise)).all())


@CASES
def test_remainders_are_not_far_above_what_happens(name: str) -> None:
    """At small widths within a factor of what some point of the box comes to, over all values."""
    case = JOINT_CASES[name]
    joint = case[0]
    if joint.in_shapes[0][-1] == 1:
        return
    anchors = joint_anchors(case, 4, seeded(5))
    boxes: Boxes = [(a - 1e-3, a + 1e-3) for a in anchors]
    rest, line, here = joint.remainder(anchors, boxes), joint.derivative(anchors), 0.0
    here, most = joint.value(*anchors), torch.zeros_like(rest)
    for seed in range(400):
        points = points_in(boxes, seed)
        moved = [p - a for p, a in zip(points, anchors, strict=True)]
        most = torch.maximum(most, (joint.value(*points) - here - line.once(moved)).abs())
    wide = 40.0 if isinstance(joint, InverseLength | Softmax) else 4.0
    assert float(rest.sum()) <= wide * float(most.sum()) + 1e-12


@CASES
def test_a_box_that_is_a_point_leaves_nothing_and_larger_boxes_leave_more(name: str) -> None:
    case = JOINT_CASES[name]
    joint = case[0]
    anchors = joint_anchors(case, 3, seeded(1))
    nothing = joint.remainder(anchors, [(a, a) for a in anchors])
    assert bool((nothing == 0).all())
    before = torch.zeros_like(nothing)
    for width in (1e-8, 1e-4, 1e-2, 0.1, 0.4):
        now = joint.remainder(anchors, [(a - width, a + width) for a in anchors])
        assert bool((now >= before).all())
        before = now


@CASES
def test_what_a_run_in_float32_rounds_is_within_its_bound_in_several_orders(name: str) -> None:
    case = JOINT_CASES[name]
    joint = case[0]
    for number, width in enumerate((0.0, 1e-3, 0.1)):
        anchors = [a.float().double() for a in joint_anchors(case, 20, seeded(40 + number))]
        boxes = boxes_around(anchors, width, 60 * number)
        bound = joint.rounding(boxes, SINGLE)
        for seed in range(4):
            points = [p.float().double() for p in points_in(boxes, seed)]
            inside = [
                (low <= p) & (p <= high) for p, (low, high) in zip(points, boxes, strict=True)
            ]
            points = [torch.where(i, p, a) for i, p, a in zip(inside, points, anchors, strict=True)]
            exact = joint.value(*points)
            for run in runs_of(joint, [p.float() for p in points], seed):
                assert bool(((run.double() - exact).abs() <= bound).all())


def runs_of(joint: Joint, values: list[Tensor], seed: int) -> list[Tensor]:
    """In float32: as torch does it, in another order, and by other formulas."""
    runs = [joint.value(*values)]
    match joint:
        case Softmax():
            order = torch.randperm(joint.size, generator=seeded(seed))
            back = order.argsort()
            # What is left out is added as −∞, as a file does.
            kept = torch.ones(joint.shape) if joint.kept is None else joint.kept.float()
            s = values[0] + kept.log()
            runs.append(torch.softmax(s[..., order], -1)[..., back])
            e = (s - s.amax(-1, keepdim=True)).exp()
            total = torch.zeros_like(e[..., :1])
            for k in order.tolist():
                total = total + e[..., k : k + 1]
            runs.append(e * (1 / total))
        case MatrixProduct():
            one, other = values
            order = torch.randperm(joint.inner, generator=seeded(seed)).tolist()
            total = torch.zeros_like(runs[0])
            for k in order:
                total = total + one[..., :, k : k + 1] * other[..., k : k + 1, :]
            runs.append(total)
        case InverseLength():
            (x,) = values
            n = x.shape[-1]
            total, squares = torch.zeros_like(x[..., :1]), torch.zeros_like(x[..., :1])
            for k in torch.randperm(n, generator=seeded(seed)).tolist():
                total = total + x[..., k : k + 1]
                squares = squares + x[..., k : k + 1] ** 2
            mean = total / n if joint.centred else torch.zeros_like(total)
            square = (squares / n if joint.mean else squares) - mean * mean
            scale = 1 / (square + joint.epsilon).sqrt()
            runs.append(scale)
        case Standardise():
            x, mean, inverse = values
            runs.append(x * inverse - mean * inverse)
        case Quotient():
            runs.append(values[0] * (1 / values[1]))
        case Product():
            pass
    return runs


def exact_softmax_free() -> list[Joint]:
    return [Product((1, 2), (1, 2)), Quotient((1, 2), (1, 2)), MatrixProduct((), 2, 2, 1)]


@pytest.mark.parametrize("joint", exact_softmax_free(), ids=lambda joint: type(joint).__name__)
def test_remainders_hold_in_exact_rational_arithmetic_at_every_corner(joint: Joint) -> None:
    """Where floating point would hide what is missing: boxes of 1e-12, and no tolerance."""
    anchors = [1 + uniform((1, *shape), seeded(7)) for shape in joint.in_shapes]
    ways = [1e-12 * (0.5 + uniform((1, *shape), seeded(8))) for shape in joint.in_shapes]
    boxes = [(a - w, a + w) for a, w in zip(anchors, ways, strict=True)]
    rest = [Fraction(float(r)) for r in joint.remainder(anchors, boxes).reshape(-1)]
    line = joint.derivative(anchors)
    values = {name: getattr(line, name) for name in vars(line)}
    held = {name: fractions(v) for name, v in values.items() if isinstance(v, Tensor)}
    start = [fractions(a) for a in anchors]
    corners = [list(zip(*(fractions(side) for side in box), strict=True)) for box in boxes]
    flat = [end for part in corners for end in part]
    for chosen in itertools.product(*flat):
        parts, left = [], list(chosen)
        for part in start:
            parts.append(left[: len(part)])
            left = left[len(part) :]
        moved = [
            [p - a for p, a in zip(x, y, strict=True)] for x, y in zip(parts, start, strict=True)
        ]
        value, here = exactly(joint, parts), exactly(joint, start)
        straight = exact_line(joint, held, moved)
        for v, h, s, r in zip(value, here, straight, rest, strict=True):
            assert abs(v - h - s) <= r


def fractions(values: Tensor) -> list[Fraction]:
    return [Fraction(float(value)) for value in values.reshape(-1)]


def exactly(joint: Joint, parts: list[list[Fraction]]) -> list[Fraction]:
    one, other = parts
    if isinstance(joint, Product):
        return [a * b for a, b in zip(one, other, strict=True)]
    if isinstance(joint, Quotient):
        return [a / b for a, b in zip(one, other, strict=True)]
    return [one[0] * other[0] + one[1] * other[1], one[2] * other[0] + one[3] * other[1]]


def exact_line(
    joint: Joint, held: dict[str, list[Fraction]], moved: list[list[Fraction]]
) -> list[Fraction]:
    one, other = moved
    if isinstance(joint, MatrixProduct):
        left, right = held["left"], held["right"]
        first = [one[0] * right[0] + one[1] * right[1], one[2] * right[0] + one[3] * right[1]]
        second = [left[0] * other[0] + left[1] * other[1], left[2] * other[0] + left[3] * other[1]]
        return [a + b for a, b in zip(first, second, strict=True)]
    pairs = zip(held["first"], one, held["second"], other, strict=True)
    return [f * a + s * b for f, a, s, b in pairs]


def test_what_is_not_known_is_never_a_number() -> None:
    """Where a divisor may be 0, a root's argument negative, a length 0, or a box infinite."""
    box = (torch.tensor([[-0.1, 0.5]]), torch.tensor([[0.2, 1.0]]))
    box = (box[0].double(), box[1].double())
    quotient = Quotient((2,), (2,))
    anchors = [torch.full((1, 2), 0.75, dtype=torch.float64)] * 2
    rest = quotient.remainder(anchors, [box, box])
    assert math.isinf(float(rest[0, 0]))
    assert math.isinf(float(quotient.rounding([box, box], SINGLE)[0, 0]))
    for name in ("root", "logarithm", "reciprocal root"):
        joint = JOINT_CASES[name][0]
        low = torch.full((1, *joint.out_shape), -0.1, dtype=torch.float64)
        high, anchor = low + 1, low + 0.6
        assert bool(joint.remainder([anchor], [(low, high)]).isinf().all())
        assert bool(joint.rounding([(low, high)], SINGLE).isinf().all())
    for name in ("L2 norm", "layer norm"):
        joint = JOINT_CASES[name][0]
        anchor = normal((1, *joint.in_shapes[0]), seeded(1))
        wide = torch.full_like(anchor, 1e3)
        rest = joint.remainder([anchor], [(anchor - wide, anchor + wide)])
        assert bool(rest.isinf().all()) or bool((rest > 1).all())
    for name, (joint, _, _) in JOINT_CASES.items():
        anchors = joint_anchors(JOINT_CASES[name], 1, seeded(2))
        nan = [(torch.full_like(a, math.nan), torch.full_like(a, math.nan)) for a in anchors]
        rest, error = joint.remainder(anchors, nan), joint.rounding(nan, SINGLE)
        assert not bool(rest.isfinite().any()), name
        assert not bool(error.isfinite().any()), name
        endless = [(torch.full_like(a, -math.inf), torch.full_like(a, math.inf)) for a in anchors]
        if joint.in_shapes[0][-1] > 1:
            low, high = joint.image(endless)
            assert not bool((low > high).any())
            assert not bool(joint.rounding(endless, SINGLE).isfinite().any()), name
