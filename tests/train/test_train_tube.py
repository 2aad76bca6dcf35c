"""The tube as a training bound: its gradients, its coins, and how far it is from what certifies."""

import pytest
import torch
from laws import seeded
from train_models import RESIDUAL, RESIDUAL_TENSORS, SHAPE, graph, recipe, trainable
from tubes import Seeded, anchors

from lipcert.bounds.claims import Rows
from lipcert.bounds.dual import DualBound
from lipcert.bounds.objectives import margin_objectives
from lipcert.bounds.projections import ProjectionAssurance
from lipcert.bounds.sketch import Tube
from lipcert.bounds.state import select, to_dtype
from lipcert.train.bounds import BOUNDS
from lipcert.train.norms import WarmNorms
from lipcert.train.objective import Objective

COUNT = 1024
ASSURANCE = ProjectionAssurance.of(COUNT, 1e-9)
# Two blocks; the first sum goes through batch norm, which is folded.
DEEP = graph(
    [
        *RESIDUAL[:4],
        ("Add", "b a", "sum0", {}),
        ("BatchNormalization", "sum0 n.s n.b n.m n.v", "sum", {}),
        ("Relu", "sum", "s", {}),
        ("Gemm", "s d.w d.b", "d", {"transB": 1}),
        ("Add", "d s", "again", {}),
        ("Relu", "again", "e", {}),
        ("Gemm", "e l.w l.b", "y", {"transB": 1}),
    ],
    RESIDUAL_TENSORS
    | {"d.w": (8, 8), "d.b": (8,), "n.s": (8,), "n.b": (8,), "n.m": (8,)}
    | {"n.v": torch.linspace(0.5, 2.0, 8).numpy()},
    SHAPE,
    seed=1,
)


def images(count=6):
    return torch.rand(count, *SHAPE, generator=seeded(4))


def estimated(bound, made, x, labels, eps):
    radius = torch.full((len(x),), eps)
    return bound(made.network(), x, labels, radius, WarmNorms())


@torch.no_grad()
def certified(made, x, labels, eps):
    """Of every sample the least margin that a tube with fresh coins and the duals in it prove, in
    float64, and its state."""
    network = made.network().to(dtype=torch.float64)
    centre = anchors(network, x.double())
    radius = torch.full((len(x),), eps, dtype=torch.float64)
    tube = Tube(network, network.to_guess_by())
    first, second = (Seeded(len(x), seeded(k)) for k in (1, 2))
    claim = tube.claim(centre, radius, ASSURANCE, first, COUNT, None, Rows(exact=True))
    proof = tube.prove(centre, claim, ASSURANCE, second)
    assert bool(proof.held.all())
    classes = network.classes
    rows = torch.arange(len(x)).repeat_interleave(classes)
    others = torch.arange(classes).repeat(len(x))
    rows, others = rows[others != labels[rows]], others[others != labels[rows]]
    objectives = margin_objectives(network, rows, labels[rows], others)
    guide = DualBound(network.to_guess_by())
    start = guide.start(
        select(to_dtype(proof.state, torch.float32), rows), objectives.to(torch.float32)
    )
    change = DualBound(network).certified(select(proof.state, rows), objectives, start)
    logits = centre.logits
    clean = logits[rows, labels[rows]] - logits[rows, others]
    return (clean + change).reshape(len(x), -1).amin(1), proof.state


@pytest.mark.parametrize("activation", ["keep", "maxmin"])
@pytest.mark.parametrize("eps", [0.05, 0.3])
def test_gradients_are_those_of_finite_differences(activation, eps):
    made, x = trainable(DEEP, activation), images()
    labels = made(x).argmax(1)

    def value():
        return estimated(BOUNDS["tube"](), made, x, labels, eps).margins.sum()

    value().backward()
    gradients = [p.grad.clone() for p in made.tensors]
    size = float(torch.stack([g.norm() for g in gradients]).norm())
    found = []
    for step in (5e-4, -5e-4):
        with torch.no_grad():
            for tensor, gradient in zip(made.tensors, gradients, strict=True):
                tensor.add_(step / size * gradient)
            found.append(float(value()))
            for tensor, gradient in zip(made.tensors, gradients, strict=True):
                tensor.sub_(step / size * gradient)
    assert (found[0] - found[1]) / 1e-3 == pytest.approx(size, rel=0.02)


@pytest.mark.parametrize("eps", [0.02, 0.2, 0.8])
def test_the_estimate_is_near_what_the_tube_proves(eps):
    """As a proof has it with exact rows and many projections: boxes within a seventh, what a margin
    loses in the ball within a tenth."""
    made, x = trainable(DEEP), images()
    labels = made(x).argmax(1)
    proven, state = certified(made, x, labels, eps)
    with torch.no_grad():
        found = estimated(BOUNDS["tube"]().eval(), made, x, labels, eps)
    for i, (low, high) in found.boxes.items():
        share = (high - low).double().sum() / (state[i].upper - state[i].lower).sum()
        assert 1 / 1.15 < float(share) < 1.15, i
    clean = found.logits.gather(1, labels[:, None]) - found.logits
    own = torch.nn.functional.one_hot(labels, 3).bool()
    least = clean.masked_fill(own, torch.inf).amin(1)
    lost, true = least - found.least(labels), least - proven
    assert float(lost.sum()) == pytest.approx(float(true.sum()), rel=0.1)
    assert bool(((lost / true - 1).abs() < 0.2).all())


def test_a_few_steps_raise_what_the_tube_certifies():
    made, x = trainable(DEEP), images(12)
    labels = made(x).argmax(1)
    before, _ = certified(made, x, labels, 0.8)
    objective = Objective(made, recipe(bound="tube", loss="bcp", sparsity=0.0))
    optimiser = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(25):
        optimiser.zero_grad()
        objective(x, labels, 0.8, 0.0)[0].backward()
        optimiser.step()
    after, _ = certified(made, x, labels, 0.8)
    assert int((before > 0).sum()) < 8 < int((after > 0).sum())
    assert float(after.mean()) > float(before.mean()) + 0.1


def test_steps_draw_new_coins_and_a_validation_the_same():
    made, x = trainable(DEEP), images()
    labels = made(x).argmax(1)
    bound = BOUNDS["tube"]()

    def found():
        with torch.no_grad():
            return estimated(bound, made, x, labels, 0.2).margins

    one, two = found(), found()
    assert not torch.equal(one, two)
    kept = {name: tensor.clone() for name, tensor in bound.state_dict().items()}
    three = found()
    bound.load_state_dict(kept)
    assert torch.equal(found(), three)
    bound.eval()
    assert torch.equal(found(), found())
    # Whatever others there are: coins belong to no sample.
    with torch.no_grad():
        alone = estimated(bound, made, x[:1], labels[:1], 0.2).margins
    assert torch.allclose(alone, found()[:1], atol=1e-5)
