"""Random networks with a tube around some samples, and random numbers that a test knows."""

import math
from dataclasses import dataclass, field

import torch
from deployed_runs import DTYPES
from laws import normal, random_network, seeded, uniform
from torch import Generator, Tensor

from lipcert.bounds import Propagation
from lipcert.bounds.boxes import Centre
from lipcert.bounds.claims import Claim, Rows
from lipcert.bounds.projections import ProjectionAssurance
from lipcert.bounds.reverse import carry_back
from lipcert.bounds.sketch import Tube, TubeProof
from lipcert.certification.deployed import Deployment
from lipcert.network import Network, lower, simplify
from lipcert.rounding import FORMATS

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


class Case:
    """A random network, samples, and a tube around them, in real or deployed arithmetic."""

    def __init__(self, seed: int, name: str | None = None, batch: int = 3) -> None:
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
        """``rows``: by default exact in every second case."""
        rows = Rows(exact=self.seed % 2 == 1) if rows is None else rows
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
    network, size = case.network, math.prod(case.network.nodes[sink].shape)
    batch, places = len(case.x), claim.places
    objectives = torch.eye(size, dtype=torch.float64).reshape(size, *network.nodes[sink].shape)
    objectives = objectives.repeat(batch, *(1,) * (objectives.dim() - 1))
    rows = torch.arange(batch).repeat_interleave(size)
    total = torch.zeros(len(objectives), dtype=torch.float64)

    def relax(i: int, value: Tensor) -> Tensor:
        nonlocal total
        total = total + (value.abs() * places[i].half[rows]).flatten(1).sum(1)
        return value * places[i].slope[rows]

    rest = carry_back(network, sink, objectives, relax)
    if rest is not None:
        total = total + claim.eps[rows] * rest.flatten(1).norm(dim=1)
    return total.reshape(batch, *network.nodes[sink].shape)


def covered(case: Case, claim: Claim, proof: TubeProof) -> bool:
    for i, place in claim.places.items():
        sink = case.network.nodes[i].inputs[0]
        exact, layer = exact_widths(case, claim, sink), proof.state[i]
        middle = layer.anchor + place.shift
        # A proven box is the claimed one at most, which a neuron that was missed leaves.
        proven = torch.maximum(layer.upper - middle, middle - layer.lower)
        good = proof.held.reshape(-1, *(1,) * (exact.dim() - 1)).expand_as(exact)
        if bool((exact > proven * (1 + 1e-9))[good].any()):
            return False
    return True
