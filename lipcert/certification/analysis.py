"""What a run is certified with, and every version of its network, each under one name."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from lipcert.certification.deployed import Deployment
from lipcert.certification.dtype import in_dtype
from lipcert.certification.heads import Head
from lipcert.certification.pace import PACES, Pace
from lipcert.network import Network, Node, keep, lower, simplify
from lipcert.network.operators import Diagonal
from lipcert.norms import Budget
from lipcert.options import Options
from lipcert.rounding import DOUBLE, FORMATS, coarsest


@dataclass(frozen=True, eq=False)
class Analysis:
    """One network under one set of options.

    All versions of the network are the same function but for rounding. ``loaded`` is as the file
    has it, in float64, where rewritings are made; ``reach`` says how far two samples can be apart:
    no radius beyond is sought.

    | version | what it is | who works on it |
    |---|---|---|
    | ``loaded`` | as the file has it, in float64 | rewritings |
    | ``deployed`` | the same, where it is computed | the deployed error, the file's runs |
    | ``attacked`` | the same in the arithmetic that certificates cover | the attack |
    | ``simplified`` | operators merged, in the type of the analysis | ``local``, ``global`` |
    | ``simplified_guide`` | its copy in float32 | where their radii are guessed |
    | ``lowered`` | comparisons written as absolute values too | ``dual``, ``refined``, ``split`` |
    | ``lowered_guide`` | its copy in float32 | guesses, and the search for multipliers |
    | ``lowered_double`` | the lowered one, always in float64 | ``tube`` |
    """

    loaded: Network
    options: Options
    budget: Budget
    device: str
    reach: float
    softmax: bool

    @classmethod
    def of(
        cls, network: Network, options: Options, budget: Budget, *,
        device: str, reach: float | None, softmax: bool,
    ) -> Analysis:  # fmt: skip
        """``reach`` is by default the largest distance of two images of pixels in [0, 1]."""
        loaded = _with_a_number(network.to(device="cpu", dtype=torch.float64))
        # Boxes of what joints read are kept in every version.
        loaded = keep(loaded) if loaded.joints else loaded
        cube = math.sqrt(math.prod(network.in_shape))
        return cls(loaded, options, budget, device, cube if reach is None else reach, softmax)

    @property
    def pace(self) -> Pace:
        return PACES[self.options.effort]

    @cached_property
    def head(self) -> Head:
        """What is proven of the margins of the deployed logits."""
        head, arithmetic = Head.of(self.options), FORMATS.get(self.options.deployed)
        if not self.softmax:
            return head
        leaves = coarsest(arithmetic, self.loaded.leaves) or DOUBLE
        return head.charged(self.loaded.classes, leaves)

    @cached_property
    def deployed(self) -> Network:
        return self.loaded.to(device=self.device)

    @cached_property
    def attacked(self) -> Network:
        # Certificates of a narrower type cover float32.
        double = self.options.deployed in ("float64", "real")
        return self.deployed.to(dtype=torch.float64 if double else torch.float32)

    @cached_property
    def simplified(self) -> Network:
        return in_dtype(simplify(self.loaded).to(device=self.device), self.options)

    @cached_property
    def simplified_guide(self) -> Network:
        return self.simplified.to_guess_by()

    @cached_property
    def lowered_double(self) -> Network:
        return simplify(lower(simplify(self.loaded))).to(device=self.device)

    @cached_property
    def kept(self) -> Analysis:
        """The same with boxes where ways part, for bounds that follow errors along all of them."""
        loaded = keep(self.loaded)
        return self if len(loaded.nodes) == len(self.loaded.nodes) else replace(self, loaded=loaded)

    @cached_property
    def lowered(self) -> Network:
        return in_dtype(self.lowered_double, self.options)

    @cached_property
    def lowered_guide(self) -> Network:
        return self.lowered.to_guess_by()

    @cached_property
    def deployment(self) -> Deployment:
        """What the arithmetic of the deployed network adds."""
        return Deployment.of(
            self.deployed,
            arithmetic=FORMATS.get(self.options.deployed),
            softmax=self.softmax,
            analysis=self.simplified.arithmetic,
            head=self.head,
        )


def _with_a_number(network: Network) -> Network:
    """A network that only moves pixels has no tensor to tell its type: scale its logits by 1."""
    if network.parameters:
        return network
    shape = network.nodes[-1].shape
    unit = Diagonal.of(torch.ones(shape, dtype=torch.float64), None, shape)
    logits = Node(unit, (network.output,), shape, "logits")
    return replace(network, nodes=(*network.nodes, logits))
