"""Patch networks stay isometries, their margins hold, and the file that they become proves them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from train_models import recipe, run

from lipcert.data import load_dataset
from lipcert.errors import UsageError
from lipcert.options import Epsilon, Options
from lipcert.run import Execution, ModelSource, Preprocessing, certify_dataset, open_model
from lipcert.train.data import Batches, held_out
from lipcert.train.loop import Training
from lipcert.train.metrics import Metrics
from lipcert.train.objective import Objective
from lipcert.train.patches import distances, orthonormal
from lipcert.train.processes import ProcessGroup
from lipcert.train.source import make_trainable, open_source
from lipcert.train.watch import TrainingWatch

DIGITS = load_dataset("digits", split="train")


def patches(seed=0, preprocessing=None):
    asked = recipe(activation="keep", loss="offset", seed=seed)
    preprocessing = preprocessing or Preprocessing()
    source = open_source(None, None, "lip-patch", preprocessing, DIGITS, seed)
    return make_trainable(source.model, asked, DIGITS)[0], source


@pytest.fixture(scope="module")
def stepped():
    """After a few large steps, thus far from where it started."""
    made, _ = patches()
    pixels, labels = some(40)
    optimiser = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], lr=0.02)
    for _ in range(8):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(
            made.estimate(pixels, labels, 0.3).logits, labels
        ).backward()
        optimiser.step()
        made.project()
    return made


def some(count):
    return torch.from_numpy(DIGITS.pixels(np.arange(count))), torch.from_numpy(
        DIGITS.labels[:count]
    )


def test_steps_stay_orthogonal(stepped):
    start, _ = patches()
    for matrix, before in zip(stepped.matrices, start.matrices, strict=True):
        flat = matrix.detach().flatten(1).double()
        gram = flat.mT @ flat
        assert torch.allclose(gram, torch.eye(len(gram), dtype=torch.float64), atol=3e-6)
        assert float((matrix - before).norm()) > 0.1
    assert torch.allclose(stepped.rows.norm(dim=1), torch.ones(10))
    assert not any(bool(skew.any()) for skew in stepped.skews)


def test_the_fast_forward_pass_is_the_file_s(stepped):
    pixels, labels = some(20)
    with torch.no_grad():
        found = stepped.estimate(pixels, labels, 0.3).logits
    exported = run(stepped.exported(stepped.weights()), pixels)
    assert torch.allclose(found, exported, atol=1e-5)
    with torch.no_grad():
        coarse = stepped.estimate(pixels, labels, 0.3, torch.bfloat16).logits
    assert torch.allclose(coarse, exported, atol=0.05)


def test_gradients_are_those_of_the_network(stepped):
    """Of biases and matrices as autograd finds them through the plain network, matrices by the
    skew part that their rotations see."""
    made, _ = patches()
    made.load_weights(stepped.weights())
    made.directions.data.copy_(made.rows)
    pixels, labels = some(12)
    made.estimate(pixels, labels, 0.3).logits.square().sum().backward()
    for matrix in made.matrices:
        matrix.requires_grad_(True)
    made_biases = [bias.grad.clone() for bias in made.biases]
    rotations = [skew.grad.clone() for skew in made.skews]
    made.zero_grad()
    made(pixels).square().sum().backward()
    for matrix, bias, found, rotation in zip(
        made.matrices, made.biases, made_biases, rotations, strict=True
    ):
        assert torch.allclose(found, bias.grad, rtol=1e-3, atol=1e-4)
        full = matrix.grad.flatten(1) @ matrix.detach().flatten(1).mT
        assert torch.allclose(rotation, (full - full.mT) / 2, rtol=1e-3, atol=1e-4)


def test_no_point_of_the_ball_is_below_the_margins(stepped):
    pixels, labels = some(30)
    eps = 0.4
    with torch.no_grad():
        lower = stepped.estimate(pixels, labels, eps).margins
    generator = torch.Generator().manual_seed(1)
    reached = torch.full((len(pixels),), torch.inf)
    point = pixels + torch.randn(pixels.shape, generator=generator) * 1e-3
    for _ in range(30):
        point = point.detach().requires_grad_(True)
        logits = stepped(point)
        found = logits.gather(1, labels[:, None]) - logits
        assert bool((found >= lower - 1e-4).all())
        rival = (
            (found - lower)
            .masked_fill(torch.nn.functional.one_hot(labels, 10).bool(), torch.inf)
            .amin(1)
        )
        reached = torch.minimum(reached, rival.detach())
        slope = torch.autograd.grad(rival.sum(), point)[0]
        size = slope.flatten(1).norm(dim=1).clamp(min=1e-9).reshape(-1, 1, 1, 1)
        moved = point.detach() - 0.2 * slope / size - pixels
        length = moved.flatten(1).norm(dim=1).clamp(min=1e-9).reshape(-1, 1, 1, 1)
        point = pixels + moved * (eps / length).clamp(max=1)
    # Isometries keep gradients: so much of the bound is used up that a wrong one would be seen.
    allowed = eps * float(distances(stepped.rows.detach()).max())
    assert float(reached.median()) < 0.7 * allowed


def test_an_average_of_isometries_becomes_one():
    one, _ = patches(0)
    other, _ = patches(0)
    with torch.no_grad():
        for skew in other.skews:
            skew.copy_(0.05 * torch.randn(skew.shape, generator=torch.Generator().manual_seed(2)))
    other.project()
    mixed = {k: (v + other.weights()[k]) / 2 for k, v in one.weights().items()}
    one.load_weights(mixed)
    for matrix in one.matrices:
        flat = matrix.detach().flatten(1)
        assert torch.allclose(flat.mT @ flat, torch.eye(flat.shape[1]), atol=1e-5)
    square = mixed["layer3.weight"].flatten(1)
    nearest = torch.linalg.svd(square)
    assert torch.allclose(orthonormal(square), nearest.U @ nearest.Vh, atol=1e-5)


def test_distances_have_a_gradient_everywhere():
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(3)).requires_grad_(True)
    found = distances(rows)
    assert torch.allclose(found, torch.cdist(rows, rows), atol=1e-5)
    found.sum().backward()
    assert bool(rows.grad.isfinite().all())


def training(folder, watch=None):
    made, source = patches()
    asked = replace(
        recipe(loss="offset", activation="keep", sparsity=0.0), batch_size=64, limit=320
    )
    train, validation = held_out(DIGITS, asked.validation, asked.seed, asked.limit)
    return Training(
        Objective(made, asked),
        Batches(train, asked.batch_size, asked.seed, "none"),
        validation,
        folder,
        identity={"recipe": asked.digest},
        processes=ProcessGroup(),
        device="cpu",
        metrics=Metrics(folder),
        watch=watch or TrainingWatch(),
    ), source


class StopAfter(TrainingWatch):
    def __init__(self, steps):
        self.left = steps

    def step(self, figures):
        self.left -= 1
        if not self.left:
            self.run.stopped = True


def test_a_run_that_was_interrupted_goes_on_bit_for_bit(tmp_path):
    expected = training(tmp_path / "whole")[0].run(resume=False)
    watch = StopAfter(6)
    stopped, _ = training(tmp_path / "parts", watch)
    watch.run = stopped
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        stopped.run(resume=False)
    found = training(tmp_path / "parts")[0].run(resume=True)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_exported_file_is_certified_as_far_as_training_believes(tmp_path, stepped):
    """By the product of norms alone, float32 rounding included."""
    _, source = patches()
    path = tmp_path / "patches.onnx"
    path.write_bytes(stepped.exported(stepped.weights()).SerializeToString())
    data = load_dataset("digits", split="test")
    indices = np.arange(8)
    pixels, labels = torch.from_numpy(data.pixels(indices)), torch.from_numpy(data.labels[:8])
    with torch.no_grad():
        logits = stepped(pixels)
    lead = logits.gather(1, labels[:, None]) - logits
    radii = (
        (lead / distances(stepped.rows.detach())[labels].clamp(min=1e-9))
        .masked_fill(torch.nn.functional.one_hot(labels, 10).bool(), torch.inf)
        .amin(1)
    )
    model = open_model(ModelSource(path), source.model.preprocessing)
    # What float32 may round in any order is charged.
    for deployed, share in (("float64", 0.999), ("float32", 0.97)):
        result = certify_dataset(
            model, data, indices,
            Options(eps=(Epsilon.parse("0.1"),), method="global", deployed=deployed,
                    failure_probability=0),
            Execution(output=tmp_path / deployed, allow_implausible=True),
        )  # fmt: skip
        found = [sample.radius or 0.0 for sample in result.samples]
        checked = 0
        for radius, expected in zip(found, radii.tolist(), strict=True):
            if expected > 0:
                checked += 1
                assert share * expected <= radius <= expected * (1 + 1e-6)
        assert checked >= 3


def test_what_a_patch_network_does_not_take_is_refused():
    with pytest.raises(UsageError, match="leave out --mean and --std"):
        patches(preprocessing=Preprocessing((0.5,), (0.5,)))
    odd = replace(DIGITS, images=np.zeros((40, 1, 10, 8), np.uint8), labels=DIGITS.labels[:40])
    with pytest.raises(UsageError, match="multiples of 4"):
        open_source(None, None, "lip-patch", Preprocessing(), odd, 0)
