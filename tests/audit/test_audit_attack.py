"""Attacks find what is there, and count nothing that lies outside."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from lipcert.audit.attack import Ball, broken, candidates

NORMAL = np.array([3.0, -4.0, 0.0, 12.0]) / 13
X = np.array([0.5, 0.25, 0.75, 0.5], dtype=np.float32)


def plane(distance: float):
    """Two classes, with a boundary at ``distance`` from ``X`` and slightly bent."""

    def logits(x: torch.Tensor) -> torch.Tensor:
        offset = x.double() - torch.from_numpy(X).double()
        along = offset @ torch.from_numpy(NORMAL)
        return torch.stack([distance - along + 0.01 * (offset**2).sum(1), 0 * along], 1)

    return logits


def in_numpy(logits):
    return lambda points: logits(torch.from_numpy(points)).numpy()


@pytest.mark.parametrize("seed", range(3))
def test_a_boundary_inside_the_ball_is_found_and_one_outside_is_not(seed):
    ball = Ball(X, 0, 1.0)
    near, far = plane(0.97), plane(1.02)
    points = candidates(near, ball, restarts=8, steps=40, seed=seed)
    found = broken(in_numpy(near), ball, points)
    assert found is not None
    assert ball.contains(found)
    points = candidates(far, ball, restarts=8, steps=40, seed=seed)
    assert broken(in_numpy(far), ball, points) is None


def test_the_ball_ends_exactly_where_it_does():
    x = np.zeros(2, np.float32)
    for point in ([0.6, 0.8], [0.28, 0.96]):
        made = np.array(point, np.float32)
        square = sum(Fraction(float(v)) ** 2 for v in made)
        radius = float(square) ** 0.5
        inside, outside = np.nextafter(radius, 2), np.nextafter(radius, 0)
        for one in (inside, radius, outside):
            assert Ball(x, 0, float(one)).contains(made) == (square <= Fraction(float(one)) ** 2)
        assert Ball(x, 0, float(np.nextafter(inside, 2))).contains(made)
        assert not Ball(x, 0, float(np.nextafter(outside, 0))).contains(made)
    assert not Ball(x, 0, 1.0).contains(np.array([np.nan, 0], np.float32))
    assert not Ball(x, 0, 9.0, pixel_domain=True).contains(np.array([-0.1, 0], np.float32))


def test_every_candidate_lies_in_the_ball_and_in_the_pixels_where_asked():
    for pixel_domain in (False, True):
        for logits in (None, plane(0.3)):
            ball = Ball(X, 0, 1.5, pixel_domain)
            points = candidates(logits, ball, restarts=9, steps=12, seed=1)
            assert points.dtype == np.float32
            assert len(points) == 9
            assert all(ball.contains(point) for point in points)
            if not pixel_domain and logits is None:
                length = np.linalg.norm(points.astype(float) - X, axis=1)
                assert (length > 1.4999).all()


def test_ties_and_numbers_that_are_not_finite_break_a_certificate():
    ball = Ball(X, 0, 1.0)
    for logits in ([1.0, 1.0], [np.nan, 0.0], [np.inf, 0.0]):
        found = broken(lambda p, logits=logits: np.array([logits] * len(p)), ball, X[None])
        np.testing.assert_array_equal(found, X)
    assert broken(lambda p: np.array([[1.0, 0.0]] * len(p)), ball, X[None]) is None
