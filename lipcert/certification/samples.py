"""A batch of samples, as one version of the network has them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from lipcert.bounds.boxes import Centre, Propagation
from lipcert.certification.analysis import Analysis
from lipcert.network import Network
from lipcert.norms import Allowance
from lipcert.numbers import OUT64


@dataclass(frozen=True, eq=False)
class Samples:
    """B samples ``x`` ``(B, …)`` in float64, exact, with their ``labels`` and the ``allowance`` of
    their coins.

    ``near``: the samples as the analysis has them, in float64 still, and ``distance`` ``(B,)`` how
    far these are from the given ones, None where they are the same. A ball around a sample lies in
    a ball around the near one that is larger by so much: that one is analysed. ``centre`` has the
    values of one version of the network there, ``runs`` those of the deployed one, None where these
    are found once they are asked for.
    """

    analysis: Analysis
    x: Tensor
    labels: Tensor
    allowance: Allowance
    near: Tensor
    distance: Tensor | None
    centre: Centre
    runs: Centre | None

    @classmethod
    def of(cls, analysis: Analysis, x: Tensor, labels: Tensor, allowance: Allowance) -> Samples:
        """Finds the values of the simplified network, and their errors from the real ones; for
        verdicts alone those of the deployed one only of samples that they are asked of."""
        near, distance = rounded(x, analysis.simplified)
        centre = Propagation.of(analysis.simplified).centre(near)
        runs = analysis.deployment.centre(near) if analysis.options.radii else None
        return cls(analysis, x, labels, allowance, near, distance, centre, runs)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def deployed(self) -> Centre:
        """The values of the deployed network at the near samples."""
        return self.analysis.deployment.centre(self.near) if self.runs is None else self.runs

    @cached_property
    def anchored(self) -> Samples:
        """The same with the values of the lowered network, whose errors start afresh at every
        activation."""
        return self.anchored_in(self.analysis.lowered)

    def anchored_in(self, network: Network) -> Samples:
        """Does as ``anchored``, with a version of the network that is at hand."""
        near, distance = rounded(self.x, network)
        same = (distance is None) == (self.distance is None)
        return replace(
            self,
            near=near,
            distance=distance,
            centre=Propagation.of(network).anchors(near),
            runs=self.runs if same else None,
        )

    def of_analysis(self, analysis: Analysis) -> Samples:
        """The same as another version of the analysis has the deployed network."""
        if analysis is self.analysis:
            return self
        return replace(self, analysis=analysis, runs=analysis.deployment.centre(self.near))

    def select(self, rows: Tensor) -> Samples:
        """Takes some of the samples."""
        return replace(
            self,
            x=self.x[rows],
            labels=self.labels[rows],
            allowance=self.allowance.select(rows),
            near=self.near[rows],
            distance=None if self.distance is None else self.distance[rows],
            centre=self.centre.select(rows),
            runs=None if self.runs is None else self.runs.select(rows),
        )

    def ball(self, eps: Tensor) -> Tensor:
        """Gives the radius around the near samples that covers ``eps`` ``(B,)`` around the given
        ones."""
        return eps if self.distance is None else OUT64.add(eps, self.distance)

    @property
    def logits(self) -> Tensor:
        """The logits at the samples as given, ``(B, K)``."""
        if self.distance is None:
            return self.centre.logits
        return self.analysis.deployment.propagation.network.logits(self.x)

    @property
    def clean(self) -> Tensor:
        """The margins at the samples but for rounding, ``(B, K)``; infinite where none counts, at
        the labels and at outputs that do not compete."""
        return self.analysis.head.margins(self.centre.logits, self.labels)

    @property
    def ahead(self) -> Tensor:
        """Which rivals are not below the label at the sample itself, ``(B, K)``."""
        return self.clean <= 0

    @property
    def decisive(self) -> Tensor:
        """What these mean together, ``(B,)``: the scale of all that is proven of them."""
        return self.analysis.head.least(self.clean, self.labels)


def rounded(x: Tensor, network: Network) -> tuple[Tensor, Tensor | None]:
    """Samples as a network in a narrower type has them, still in ``x``'s own, and how far they are
    from the given ones, ``(B,)``: None where they are the same."""
    dtype = network.anchor.dtype
    if dtype == x.dtype:
        return x, None
    near = x.to(dtype).to(x.dtype)
    return near, OUT64.length(x - near)
