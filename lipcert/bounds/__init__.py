"""From a network, a centre and a radius to lower bounds of the margins."""

from lipcert.bounds.anchored_bound import AnchoredBound
from lipcert.bounds.ball import node_constants
from lipcert.bounds.boxes import Centre, Propagation
from lipcert.bounds.facts import FactPlan, Facts
from lipcert.bounds.lipschitz import (
    Layers,
    global_margins,
    local_margins,
    local_radii,
    logit_constant,
)
from lipcert.bounds.methods import (
    Bound,
    GlobalBound,
    LocalBallBound,
    LocalBound,
)
from lipcert.bounds.support import ball_box_support

__all__ = [
    "AnchoredBound",
    "Bound",
    "Centre",
    "FactPlan",
    "Facts",
    "GlobalBound",
    "Layers",
    "LocalBallBound",
    "LocalBound",
    "Propagation",
    "ball_box_support",
    "global_margins",
    "local_margins",
    "local_radii",
    "logit_constant",
    "node_constants",
]  # fmt: skip
