"""Random networks with a tube around some samples, and random numbers that a test knows."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from deployed_runs import DTYPES
from laws import normal, random_network, seeded, uniform
from torch import Generator, Tensor

from lipcert.bounds import Propagation
from lipcert.bounds.boxes import Centre
from lipcert.bounds.claims import Claim, Claimed, Rows
from lipcert.bounds.projections import ProjectionAssurance
from lipcert.bounds.reverse import carry_back
from lipcert.bounds.sketch import Tube, TubeProof
from lipcert.certification.deployed import Deployment
from lipcert.network import Network, lower, simplify
from lipcert.rounding import FORMATS, column

COUNT = 192
RADII = (1e-9, 1e-3, 0.05, 0.3)


@dataclass
class Seeded:
    """RandomNumbers from a generator; ``drawn`` keeps the normal ones."""

    batch: int
    generator: Generator
    drawn: list[Tensor] = field(default_factory=list)

    def normals(self, count: int, shape: tuple[int, ...]) -> Tensor:
        self.drawn.append(normal((self.batch, count, *shape), self.generator))
        return self.drawn[-1]

    def cauchy(self, count: int, shape: tuple[int, ...]) -> Tensor:
        even = uniform((self.batch, count, *shape), self.generator)
        return torch.tan(math.pi * (even - 0.5))

    def cauchy_of(self, count: int, own: Tensor) -> Tensor:
        return self.cauchy(count, own.shape[1:]) * own[:, None]


class Case:
    """A random network, samples, and a tube around them, in real or deployed arithmetic."""

    def __init__(
        self, seed: int, name: str | None = None, batch: int = 3, loaded: Network | None = None
    ) -> None:
        if loaded is None:
            loaded = random_network(seeded(seed), blocks=1 + seed % 3)
        self.x = uniform((batch, *loaded.in_shape), seeded(seed + 50))
        if name is not None:
            self.x = self.x.to(DTYPES[name]).double()
        self.network = simplify(lower(simplify(loaded)))
        arithmetic = None if name is None else FORMATS[name]
        self.deployment = Deployment.of(loaded, arithmetic=arithmetic, softmax=False)
        self.noise = self.deployment.noise(self.network)
        self.tube = Tube(self.network, self.network.to_guess_by())
        self.centre = anchors(self.network, self.x)
        self.seed = seed

    def proof(
        self, radius: float, assurance: ProjectionAssurance, rows: Rows | None = None
    ) -> tuple[Claim, TubeProof]:
        """``rows``: by default exact in every second case, in every fourth with columns."""
        rows = Rows(self.seed % 2 == 1, columns=12 * (self.seed % 4 == 3)) if rows is None else rows
        eps = torch.full((len(self.x),), radius, dtype=torch.float64)
        rounding = None if self.noise is None else self.noise.over(eps).before
        first, second = (Seeded(len(eps), seeded(self.seed + k)) for k in (1000, 2000))
        claim = self.tube.claim(self.centre, eps, assurance, first, COUNT, rounding, rows)
        return claim, self.tube.prove(self.centre, claim, assurance, second)


def anchors(network: Network, x: Tensor) -> Centre:
    return Propagation.of(network, [math.inf] * len(network.nodes)).anchors(x)


ASSURANCE = ProjectionAssurance.of(COUNT, 1e-9)


def exact_widths(case: Case, claim: Claim, sink: int) -> Tensor:
    """What the claim's weights give exactly at each neuron: its row's norm, and its errors."""
    errors = exact_sum(case, claim, sink, lambda place: place.half + place.alone)
    return errors + column(claim.eps, errors) * row_lengths(case, claim, sink)


def exact_sum(case: Case, claim: Claim, sink: int, errors: Callable[[Claimed], Tensor]) -> Tensor:
    """What such errors of all layers come to at each neuron, in the worst case."""
    network, size = case.network, math.prod(case.network.nodes[sink].shape)
    batch, places = len(case.x), claim.places
    objectives = torch.eye(size, dtype=torch.float64).reshape(size, *network.nodes[sink].shape)
    objectives = objectives.repeat(batch, *(1,) * (objectives.dim() - 1))
    rows = torch.arange(batch).repeat_interleave(size)
    total = torch.zeros(len(objectives), dtype=torch.float64)

    def relax(i: int, value: Tensor) -> Tensor:
        nonlocal total
        total = total + (value.abs() * errors(places[i])[rows]).flatten(1).sum(1)
        return value * places[i].slope[rows]

    carry_back(network, sink, objectives, relax)
    return total.reshape(batch, *network.nodes[sink].shape)


def covered(case: Case, claim: Claim, proof: TubeProof, at: int | None = None) -> bool:
    """Everywhere, or at one activation."""
    places = claim.places if at is None else {at: claim.places[at]}
    for i, place in places.items():
        sink = case.network.nodes[i].inputs[0]
        exact, layer = exact_widths(case, claim, sink), proof.state[i]
        middle = layer.anchor + place.shift
        # A proven box is the claimed one at most, which a neuron that was missed leaves.
        proven = torch.maximum(layer.upper - middle, middle - layer.lower)
        good = proof.held.reshape(-1, *(1,) * (exact.dim() - 1)).expand_as(exact)
        if bool((exact > proven * (1 + 1e-9))[good].any()):
            return False
    return True


def row_lengths(case: Case, claim: Claim, sink: int) -> Tensor:
    network, batch = case.network, len(case.x)
    size, shape = math.prod(network.nodes[sink].shape), network.nodes[sink].shape
    unit = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    unit = unit.repeat(batch, *(1,) * len(shape))
    rows = torch.arange(batch).repeat_interleave(size)
    rest = carry_back(network, sink, unit, lambda i, v: v * claim.places[i].slope[rows])
    if rest is None:
        return torch.zeros(batch, *shape, dtype=torch.float64)
    return rest.flatten(1).norm(dim=1).reshape(batch, *shape)
