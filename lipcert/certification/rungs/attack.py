"""An attack: no time is spent on proving what is false."""

from __future__ import annotations

from dataclasses import dataclass

from lipcert.certification.analysis import Analysis
from lipcert.certification.attack import nearest
from lipcert.certification.findings import Findings, Step
from lipcert.certification.heads import Head
from lipcert.certification.samples import Samples


@dataclass(frozen=True)
class Attacked:
    """Finds the nearest misclassified point of every sample: no bound is sought beyond it."""

    analysis: Analysis
    name: str = "attack"

    def climb(self, samples: Samples, known: Findings) -> Step:
        analysis, rows = self.analysis, known.correct.nonzero().flatten()
        network, pace = analysis.attacked, analysis.pace
        found = nearest(
            network, samples.x[rows], samples.labels[rows], within=analysis.reach,
            steps=pace.attack_steps, restarts=pace.attack_restarts,
            pixel_domain=analysis.options.pixel_domain, seed=analysis.budget.seed,
            dtype=network.anchor.dtype, head=Head.of(analysis.options),
        )  # fmt: skip
        return Step(self.name, rows, attack=found)
