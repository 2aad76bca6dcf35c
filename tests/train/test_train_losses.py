"""Losses by hand, schedules at their corners, data that is split and shared without a gap."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from train_models import recipe

from lipcert.data import Dataset
from lipcert.errors import UsageError
from lipcert.network import NetworkBuilder
from lipcert.network.activations import Clip
from lipcert.options import Epsilon
from lipcert.train.data import (
    Batches,
    Images,
    augmented,
    chosen_augment,
    held_out,
    natural,
)
from lipcert.train.estimate import Estimate
from lipcert.train.losses import LOSSES, Aim, distillation, features_apart, sparsity
from lipcert.train.schedules import Schedule


def network(kind):
    builder = NetworkBuilder((1, 2))
    return builder.build(builder.activation(kind, 0))


def estimate(kind=None, boxes=None):
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.5]])
    margins = torch.tensor([[0.0, 1.0, -0.5], [2.0, 0.0, 1.5]])
    made = network(kind or Clip(torch.zeros(()), None))
    return Estimate(made, logits, margins, boxes or {}), torch.tensor([0, 1])


def mean_of(name, *given):
    each = LOSSES[name](*given)
    assert each.shape == given[1].shape
    return float(each.mean())


def cross_entropy(rows, labels):
    return sum(
        math.log(sum(math.exp(v) for v in row)) - row[label]
        for row, label in zip(rows, labels, strict=True)
    ) / len(labels)


def test_gloro_adds_a_class_not_certified():
    found, labels = estimate()
    # The worst logits of the others: 2 − (−0.5) and 3 − 1.5.
    expected = cross_entropy([[2, 0, 1, 2.5], [0, 3, 0.5, 1.5]], [0, 1])
    assert mean_of("gloro", found, labels, Aim(0.3, 1.0, 0.1)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kappa", [0.0, 0.25, 1.0])
def test_bcp_mixes_clean_and_worst_logits(kappa):
    found, labels = estimate()
    clean = cross_entropy([[2, 0, 1], [0, 3, 0.5]], [0, 1])
    worst = cross_entropy([[2, 1, 2.5], [1, 3, 1.5]], [0, 1])
    expected = kappa * clean + (1 - kappa) * worst
    assert mean_of("bcp", found, labels, Aim(kappa, 1.0, 0.1)) == pytest.approx(expected, rel=1e-5)


def test_margin_is_a_hinge_on_the_smallest_margin():
    found, labels = estimate()
    clean = cross_entropy([[2, 0, 1], [0, 3, 0.5]], [0, 1])
    hinge = (max(0, 2 + 0.5) + max(0, 2 - 1.5)) / 2
    assert mean_of("margin", found, labels, Aim(0.25, 2.0, 0.1)) == pytest.approx(
        0.25 * clean + 0.75 * hinge, rel=1e-5
    )


def test_emma_raises_rivals_by_what_the_ball_adds_and_no_more_than_overtakes():
    found, labels = estimate()
    # Sample 0: leads 2 and 1, of which the ball takes 1 and 1.5, the latter cut to 1.
    # Sample 1: leads 3 and 2.5, of which it takes 1 and 1.
    expected = cross_entropy([[2, 1, 2], [1, 3, 1.5]], [0, 1])
    loss = mean_of("emma", found, labels, Aim(0.3, 1.0, 0.1))
    assert loss == pytest.approx(expected, rel=1e-5)


def test_emma_of_a_wrong_prediction_is_the_clean_loss():
    logits, margins = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, -3.0]])
    found = Estimate(network(Clip(torch.zeros(()), None)), logits, margins, {})
    loss = mean_of("emma", found, torch.tensor([0]), Aim(0.0, 1.0, 0.1))
    assert loss == pytest.approx(cross_entropy([[0, 1]], [0]), rel=1e-5)


@pytest.mark.parametrize("kappa", [0.0, 0.5])
def test_annealed_weighs_the_worst_logits_at_three_quarters(kappa):
    found, labels = estimate()
    total = 0.0
    for row, label in (([2, 1, 2.5], 0), ([1, 3, 1.5], 1)):
        each = cross_entropy([[v / 0.75 for v in row]], [label])
        total += 0.75 * (1 - math.exp(-each)) ** 5 * each / 2
    clean = cross_entropy([[2, 0, 1], [0, 3, 0.5]], [0, 1])
    loss = mean_of("annealed", found, labels, Aim(kappa, 1.0, 0.1))
    assert loss == pytest.approx(kappa * clean + (1 - kappa) * total, rel=1e-5)


def test_offset_lowers_the_label_and_sharpens():
    found, labels = estimate()
    down = 2 * math.sqrt(2) * 0.1
    rows = [[4 * (2 - down), 0, 4], [0, 4 * (3 - down), 2]]
    loss = mean_of("offset", found, labels, Aim(0.0, 1.0, 0.1))
    assert loss == pytest.approx(cross_entropy(rows, [0, 1]) / 4, rel=1e-5)


def box(low, high):
    return {1: (torch.tensor([low]), torch.tensor([high]))}


def test_sparsity_of_relu_theta():
    kind = Clip(torch.zeros(()), torch.tensor([2.0, 1.0]))
    found, _ = estimate(kind, box([-1.0, 0.5], [3.0, 4.0]))
    expected = (3 + 4) / 2 + 0.1 * ((2 + 1) + (1 - 0.5)) / 2
    assert float(sparsity(found)) == pytest.approx(expected)


def test_sparsity_of_relu_and_of_maxmin():
    relu, _ = estimate(Clip(torch.zeros(()), None), box([-1.0, -2.0], [3.0, -1.0]))
    assert float(sparsity(relu)) == pytest.approx(3 / 2)
    limits = Clip(torch.tensor([-torch.inf, -1.0]), torch.tensor([2.0, torch.inf]))
    pairs, _ = estimate(limits, box([0.5, -3.0], [1.0, 0.0]))
    # relu(θ⁺ − l) of the one and relu(u − θ⁻) of the other.
    assert float(sparsity(pairs)) == pytest.approx((2 - 0.5) / 2 + (0 + 1) / 2)


@given(st.floats(0, 40), st.sampled_from(["exponential", "cosine"]))
def test_schedules_stay_between_their_ends(t, kind):
    schedule = Schedule(30, 2, 8, 0.5, 0.1, 1e-3, 1e-6, kind)
    assert 0 <= schedule.eps_at(t) <= 0.5
    assert 0.1 <= schedule.kappa_at(t) <= 1
    assert 1e-6 * 0.1 <= schedule.rate_at(min(t, 30)) <= 1e-3
    later = schedule.eps_at(t + 1), schedule.kappa_at(t + 1), schedule.rate_at(t + 1)
    assert later[0] >= schedule.eps_at(t)
    assert later[1] <= schedule.kappa_at(t)
    # A cosine rises over the first 2 % before it falls.
    rising = kind == "cosine" and t < 0.02 * 30
    assert rising or later[2] <= schedule.rate_at(t) + 1e-12


def test_schedules_at_their_corners():
    schedule = Schedule(800, 20, 400, 0.155, 0.0, 1e-3, 1e-6, "exponential")
    assert (schedule.eps_at(20), schedule.kappa_at(20)) == (0, 1)
    assert schedule.eps_at(420) == pytest.approx(0.155)
    assert schedule.kappa_at(420) == 0
    # The published schedule: constant up to E/2 + 25.
    assert schedule.rate_at(425) == 1e-3
    assert schedule.rate_at(426) < 1e-3
    assert schedule.rate_at(800) == pytest.approx(1e-6)
    at_once = Schedule(5, 1, 0, 0.3, 0.2, 1e-3, 1e-5, "cosine")
    assert (at_once.eps_at(0.9), at_once.eps_at(1)) == (0, 0.3)
    assert at_once.rate_at(5) == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("bound", "tight"), ("loss", "mse"), ("epochs", 0), ("rate", float("nan")), ("ema", 1.0),
        ("kappa", 2.0), ("batch_size", 0), ("eps_factor", 0.0), ("last_rate", 1.0),
    ],
)  # fmt: skip
def test_a_recipe_that_makes_no_sense_is_refused(option, value):
    with pytest.raises(UsageError, match="--"):
        recipe(**{option: value})


def test_a_recipe_needs_a_radius_and_is_known_by_its_digest():
    with pytest.raises(UsageError, match="above 0"):
        recipe(eps=Epsilon.parse("0"))
    assert recipe().digest == recipe().digest != recipe(seed=1).digest


def made_up(count=50, shape=(3, 16, 16)):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, *shape), dtype=np.uint8)
    return Dataset("made-up", "train", images, np.arange(count) % 5, 5, "made-up")


def test_validation_images_are_never_trained_on():
    data = made_up()
    train, validation = held_out(data, 0.2, seed=3)
    assert len(validation) == 10
    assert sorted([*train.indices, *validation.indices]) == list(range(50))
    assert np.array_equal(held_out(data, 0.2, seed=3)[1].indices, validation.indices)
    assert not np.array_equal(held_out(data, 0.2, seed=4)[1].indices, validation.indices)
    few = held_out(data, 0.2, seed=3, limit=20)
    assert len(few[0]) + len(few[1]) == 20
    with pytest.raises(UsageError, match="--validation"):
        held_out(data, 0.0, seed=3)


@pytest.mark.parametrize("augment", ["none", "crop", "crop-flip"])
def test_processes_share_each_batch_without_gap_or_overlap(augment):
    data = made_up()
    images = Images(data, np.arange(50))
    alone = list(Batches(images, 16, 7, augment).epoch(2, 0))
    parts = [list(Batches(images, 16, 7, augment, rank, 4).epoch(2, 0)) for rank in range(4)]
    assert len(alone) == 3
    for step, (pixels, labels) in enumerate(alone):
        joined = [part[step] for part in parts]
        assert torch.equal(torch.cat([p for p, _ in joined]), pixels)
        assert torch.equal(torch.cat([y for _, y in joined]), labels)
    # From the middle on, as after an interruption.
    later = list(Batches(images, 16, 7, augment).epoch(2, 2))
    assert torch.equal(later[0][0], alone[2][0])
    other = next(iter(Batches(images, 16, 7, augment).epoch(3, 0)))
    assert not torch.equal(other[1], alone[0][1])


def test_batches_that_cannot_be_are_refused():
    images = Images(made_up(), np.arange(50))
    with pytest.raises(UsageError, match="multiple of the 3 processes"):
        Batches(images, 16, 0, "none", 0, 3)
    with pytest.raises(UsageError, match="only 50 images"):
        Batches(images, 64, 0, "none")


@pytest.mark.parametrize("how", ["none", "crop", "flip", "crop-flip"])
def test_crops_and_flips_move_whole_images(how):
    grid = torch.arange(16 * 16, dtype=torch.float32).reshape(1, 1, 16, 16).expand(200, 3, 16, 16)
    moved = augmented(grid + 1, how, np.random.default_rng(0))
    assert moved.shape == grid.shape
    flipped = 0
    for image in moved:
        assert torch.equal(image[0], image[2])
        inside = image[0, 4:12, 4:12]
        right = inside[0, 1] - inside[0, 0]
        flipped += int(right == -1)
        assert abs(float(right)) == 1
        assert bool((inside[1:] - inside[:-1] == 16).all())
    assert (60 < flipped < 140) == ("flip" in how)
    # Black comes in where an image was moved, and nowhere else.
    assert bool((moved == 0).any()) == ("crop" in how)
    assert torch.equal(moved, grid + 1) == (how == "none")


def test_auto_moves_photographs_and_flat_images_are_not_moved():
    assert chosen_augment("auto", made_up()) == "crop-flip"
    assert chosen_augment("auto", made_up(), patches=True) == "flip"
    assert chosen_augment("crop-flip", made_up(), patches=True) == "crop-flip"
    assert chosen_augment("auto", made_up(shape=(1, 28, 28)), patches=True) == "none"
    assert chosen_augment("auto", made_up(shape=(1, 28, 28))) == "none"
    assert chosen_augment("crop", made_up(shape=(1, 28, 28))) == "crop"
    flat = made_up(shape=(20,))
    assert chosen_augment("auto", flat) == "none"
    with pytest.raises(UsageError, match="--augment none"):
        chosen_augment("flip", flat)


def test_some_images_are_spread_over_all():
    """Data that lie sorted by class must not lose classes where few images are looked at."""
    data = made_up()
    by_class = Images(data, np.argsort(data.labels, kind="stable"))
    some = by_class.some(10)
    assert sorted(data.labels[some.indices]) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert len(by_class.some(1000)) == 50


def test_distillation_is_nothing_where_nothing_was_lost_and_by_hand():
    taught = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    assert float(distillation(taught + 3, taught).abs().max()) < 1e-6
    found = distillation(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
    p = 1 / (1 + math.exp(-1))
    expected = 4 * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_features_are_as_far_apart_as_their_directions():
    taught = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    found = torch.tensor([[0.6, 0.8], [0.0, 2.0], [-5.0, 0.0], [1.0, 1.0]])
    expected = torch.tensor([0.0, 1.0, 2.0, 1 - math.sqrt(0.5)])
    assert torch.allclose(features_apart(found, taught), expected, atol=1e-6)


def test_photographs_are_told_from_drawings():
    assert natural(made_up())
    assert not natural(made_up(shape=(1, 28, 28)))
    assert not natural(made_up(shape=(3, 8, 8)))
