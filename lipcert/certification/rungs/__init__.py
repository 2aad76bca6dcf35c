"""The rungs of certification, each in a file, and their order in one list.

A rung takes samples and what is known of them, and makes a ``Step``: an attack from above, or a
lower bound from below. What it takes is not changed; what it may use of coins and failure
probability it has asked the run's budget for when the ladder was made.
"""

from __future__ import annotations

from lipcert.certification.analysis import Analysis
from lipcert.certification.duals import Duals
from lipcert.certification.published import Published
from lipcert.certification.rungs.attack import Attacked
from lipcert.certification.rungs.base import Rung, open_at
from lipcert.certification.rungs.dual import DualAt, DualRadius, DualWithin
from lipcert.certification.rungs.local import Largest, LocalAt, Radius
from lipcert.certification.rungs.plan import FEW_LAYERS, TubePlan, is_deep
from lipcert.certification.rungs.refined import refined_at
from lipcert.certification.rungs.split import SplitAt
from lipcert.certification.rungs.tube import SETTLED, Nothing, TubeRadius, check_joints

__all__ = ["Rung", "is_deep", "ladder", "open_at"]

# The part of the run's failure probability that the published bounds leave to the others.
_LATER = 0.5
# Before boxes are refined a margin is split into no more leaves than this.
_FEW_LEAVES = 48


def ladder(analysis: Analysis, published: Published) -> tuple[Rung, ...]:
    """All rungs of a run, in the order in which its samples climb them; a sample that a rung has
    settled is passed over by the later ones that could not change it."""
    pace, options = analysis.pace, analysis.options
    if analysis.loaded.joints:
        check_joints(analysis.loaded, options)
        return Nothing(), Attacked(analysis), TubeRadius.of(analysis, _LATER)
    name = "local" if options.method == "auto" else options.method
    every = sorted((eps.rounded_up for eps in options.eps), reverse=True)
    last: list[Rung] = [LocalAt(published, eps, name) for eps in every]
    if options.radii:
        last = [Radius(published, name)]
    if options.method != "auto":
        return Largest(published.found(), name), *last
    attack = Attacked(analysis)
    # A tube is nothing without coins.
    if is_deep(analysis.loaded) and not options.deterministic:
        kept = analysis.kept.lowered_double
        if TubePlan.of(kept, pace.tube) is not None:
            # Of what Lipschitz constants settle no tube is asked, and of others no norms.
            largest = Largest(published, share=SETTLED)
            settled = Radius(published, share=SETTLED, rough=True)
            tube = TubeRadius.of(analysis, _LATER)
            return attack, largest, settled, tube, Radius(published, rough=True)
        # Nothing begins that would not end; a few layers the duals may do.
        if len(kept.sinks) > FEW_LAYERS:
            return Largest(published.found()), attack, *last
    duals = Duals.of(analysis, _LATER)
    rungs: list[Rung] = [Largest(published.found()), attack]
    rungs += [DualRadius(duals)] if options.radii else []
    few = min(pace.leaves, _FEW_LEAVES)
    for eps in (eps.rounded_up for eps in options.eps):
        rungs += [] if options.radii else [DualWithin(duals, eps)]
        rungs.append(DualAt(duals, eps, pace.boxes))
        rungs += [SplitAt(duals, eps, few)] if few else []
        rungs += [refined_at(duals, eps)] if pace.refine is not None else []
        rungs += [SplitAt(duals, eps, pace.leaves)] if pace.refine is not None and few else []
    return *rungs, *last
