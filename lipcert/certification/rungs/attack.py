"""An attack: no time is spent on proving what is false."""

from __future__ import annotations

from dataclasses import dataclass

from lipcert.certification.analysis import Analysis
from lipcert.certification.attack import nearest
from lipcert.certification.findings import Findings, Step
from lipcert.certification.heads import Head
from lipcert.certification.rungs.base import open_at
from lipcert.certification.samples import Samples


@dataclass(frozen=True)
class Attacked:
    """Finds the nearest misclassified point of every sample: no bound is sought beyond it. For
    verdicts alone, only of samples that are not certified at the largest eps yet."""

    analysis: Analysis
    name: str = "attack"

    def climb(self, samples: Samples, known: Findings) -> Step:
        analysis, options = self.analysis, self.analysis.options
        attacked = known.correct if options.radii else open_at(known, options.largest.rounded_up)
        rows = attacked.nonzero().flatten()
        if not (options.radii or len(rows)):
            return Step(self.name, rows)
        network, pace = analysis.attacked, analysis.pace
        found = nearest(
            network, samples.x[rows], samples.labels[rows], within=analysis.reach,
            steps=pace.attack_steps, restarts=pace.attack_restarts,
            pixel_domain=options.pixel_domain, seed=analysis.budget.seed,
            dtype=network.anchor.dtype, head=Head.of(options),
        )  # fmt: skip
        return Step(self.name, rows, attack=found)
