"""The anchored bound behind the face of all bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from lipcert.bounds.anchored import anchored_state, found_state
from lipcert.bounds.boxes import Centre
from lipcert.bounds.chain import chain_sources
from lipcert.bounds.dual import DualBound
from lipcert.bounds.facts import FactPlan, Facts, Finder, NoiseOf, NormOf
from lipcert.bounds.lipschitz import Layers, change_box, local_margins
from lipcert.bounds.methods import Bound
from lipcert.bounds.refined import Refinement, Subnetwork
from lipcert.bounds.reverse import RigorousSweep
from lipcert.bounds.state import State
from lipcert.network import Network
from lipcert.network.activations import Elementwise
from lipcert.numbers import Box


@dataclass(frozen=True, eq=False)
class AnchoredBound(Bound):
    """Margins from the anchored state, with ball ∩ box in the last layer.

    The network has element-wise activations only (``network.lower``). ``rough`` is its copy in
    lower precision, where slopes of refined boxes are sought; ``plan`` says what is prepared, if a
    preparation does not say it. ``images``: only inputs in [0, 1] count.
    """

    rough: Network | None = None
    plan: FactPlan = field(default_factory=FactPlan)
    images: bool = False

    @cached_property
    def duals(self) -> tuple[DualBound, DualBound]:
        """The one that proves, in float64 unless all is rough, and the one that seeks slopes."""
        network = self.layers.network
        rough = network if self.rough is None else self.rough
        return DualBound(network.exact, images=self.images), DualBound(rough, images=self.images)

    @cached_property
    def subnetworks(self) -> dict[int, Subnetwork]:
        """What the inputs of activations see whose boxes may be refined, past other activations."""
        network, refinement = self.layers.network, self.plan.refinement or Refinement()
        seen = [sink for sink in network.sinks if chain_sources(network, sink)]
        return {sink: Subnetwork.of(self.duals, sink, refinement.receptive) for sink in seen}

    @cached_property
    def sweep(self) -> RigorousSweep:
        return RigorousSweep(self.layers.network.exact)

    def prepare(
        self, centre: Centre, eps: Tensor, norm_of: NormOf, boxes: list[Box] | None = None
    ) -> Facts:
        return self.prepare_state(centre, eps, norm_of)[0]

    def prepare_state(
        self, centre: Centre, eps: Tensor, norm_of: NormOf, noise_of: NoiseOf | None = None,
        plan: FactPlan | None = None,
    ) -> tuple[Facts, State]:  # fmt: skip
        """What is found by the ``plan``, and the state at that radius; with noise it holds every
        run that rounds at most so."""
        plan = self.plan if plan is None else plan
        finder = Finder(
            self.layers,
            self.norms,
            {} if plan.refinement is None else self.subnetworks,
            self.sweep,
            self.layers.network if self.rough is None else self.rough,
            self.images,
            plan,
            centre,
            norm_of,
        )
        edges = self.layers.edges_into
        return found_state(self.propagation, edges, centre, eps, finder, noise_of)

    def state(
        self, centre: Centre, eps: Tensor, facts: Facts, noise_of: NoiseOf | None = None
    ) -> State:
        """Makes the state at ``eps`` from what was found at this radius or a larger one."""
        edges = self.layers.edges_into
        return anchored_state(self.propagation, edges, centre, eps, facts, noise_of)

    def margins(
        self, centre: Centre, labels: Tensor, eps: Tensor, facts: Facts,
        boxes: list[Box] | None = None,
    ) -> Tensor:  # fmt: skip
        return self.margins_in(centre, labels, self.state(centre, eps, facts))

    def margins_in(self, centre: Centre, labels: Tensor, state: State) -> Tensor:
        """Does as ``margins``, from a state that is at hand."""
        return state_margins(self.layers, centre, labels, state)


def state_margins(layers: Layers, centre: Centre, labels: Tensor, state: State) -> Tensor:
    """Lower bounds of the margins from the ball and box of the last layer: ``(B, K)``; 0 at the
    label itself."""
    network, gain, change, radii = layers.network, {}, {}, {}
    for i in layers.last:
        kind, box = network.nodes[i].kind, (state[i].lower, state[i].upper)
        if isinstance(kind, Elementwise):
            box = kind.image(*box)
        gain[i], radii[i] = state[i].gain, state[i].radius
        change[i] = change_box(network, centre, i, box)
    return local_margins(layers, centre, labels, gain, change, radii)
