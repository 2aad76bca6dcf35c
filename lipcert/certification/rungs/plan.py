"""What a tube takes, told from the graph before anything is computed, and how many tangents an
effort pays for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lipcert.bounds.claims import Rows
from lipcert.bounds.sketch import COLUMN_BYTES
from lipcert.certification.pace import PACES, TubePace
from lipcert.network import Network, ancestors, held, lower, simplify
from lipcert.options import Options

# Networks whose activations are computed from more values than this, in all, are deep. Counted over
# pretrained networks: shallow ones have at most 2^19, ResNet-20 and its like 2^21.7 and more.
_DEEP = 2.0**20
# Up to so many values of the input are rows measured exactly, in as many passes of float32: more
# would take longer than random ones that find them within some per cent.
_MOST_UNITS = 4096
# So many layers take no tube where they are too large for one; bytes of a value for as many
# tangents in float64, of two kinds, as assure something.
FEW_LAYERS, _WIDEST = 8, 256 * 2 * 8
# Fewer projections than this assure next to nothing.
_FEWEST = 128
# Processor seconds of one tangent for a multiplication of an operator, and for a neuron: in
# float32, where coins are rough, and in float64. Measured on ResNet-20, whose claim of 3,840
# tangents takes 8.3 s and whose proof of 1,024 takes 7.3 s.
_SINGLE, _DOUBLE = (2.4e-11, 6e-9), (8e-11, 2e-8)
# What a claim and a proof take beside their tangents, for a neuron: roundings and duals.
_BESIDE = 4e-6
# Bytes of a neuron for what a claim holds fast of it, and for the states of claim and proof.
_CLAIMED = 300
_GIBIBYTE = 2.0**30


@dataclass(frozen=True)
class TubePlan:
    """How many tangents of one sample are used for what, what that takes in seconds of a processor,
    and the most memory, in bytes."""

    rows: Rows
    projections: int
    claims: int
    guesses: int
    seconds: float
    memory: float

    @classmethod
    def of(cls, network: Network, pace: TubePace) -> TubePlan | None:
        """The best that is within what the effort may take; None where nothing is."""
        for plan in _plans(network, pace):
            if plan.seconds <= pace.seconds and plan.memory <= pace.memory:
                return plan
        return None

    @classmethod
    def least(cls, network: Network, pace: TubePace) -> TubePlan:
        """The one that takes least."""
        return _plans(network, pace)[-1]

    @property
    def told(self) -> str:
        return (
            f"about {self.seconds:.0f} s of processor time and {self.memory / _GIBIBYTE:.1f} GiB "
            "an image"
        )


def is_deep(network: Network) -> bool:
    """Whether the tube is to be taken: how many values lead to all activations, counted for each,
    is what chains of norms would cost. Not where a few layers are so large that memory has no room
    for as many tangents of one sample as assure something. A network with joints has no other
    bound."""
    if network.joints:
        return True
    simple = simplify(lower(simplify(network)))
    work = sum(simple.nodes[j].size for sink in simple.sinks for j in ancestors(simple, sink))
    small = held(simple) * _WIDEST <= PACES["fast"].tube.memory
    return work > _DEEP and (small or len(simple.sinks) > FEW_LAYERS)


def not_within(network: Network, options: Options, pace: TubePace) -> str:
    """What a tube would take where the effort does not pay for it, and what to do."""
    least, efforts = TubePlan.least(network, pace), list(PACES)
    dearer = efforts[efforts.index(options.effort) + 1 :]
    pay = [effort for effort in dearer if TubePlan.of(network, PACES[effort].tube) is not None]
    other = f"--effort {pay[0]}, or " if pay else ""
    return (
        f"the tube of this deep network takes {least.told}, more than the {pace.seconds:.0f} s and "
        f"{pace.memory / _GIBIBYTE:.0f} GiB of --effort {options.effort}: choose {other}a model of "
        "smaller images"
    )


def _plans(network: Network, pace: TubePace) -> list[TubePlan]:
    """What could be done, the best first."""
    values, plans = math.prod(network.in_shape), []
    exact = [True, False] if values <= _MOST_UNITS else [False]
    for units in exact:
        for share in (1.0, 0.5, 0.25, 0.125):
            projections = max(_FEWEST, round(share * pace.projections))
            claims = max(_FEWEST, round(share * pace.claims))
            guesses = max(_FEWEST // 4, round(share * pace.guesses))
            # Columns are what can be left out best.
            for columns in (pace.columns, pace.columns // 4, 0) if units else (0,):
                rows = Rows(exact=units, columns=columns)
                plan = TubePlan(rows, projections, claims, guesses, 0.0, 0.0)
                plans.append(_priced(network, plan, pace))
    return plans


def _priced(network: Network, plan: TubePlan, pace: TubePace) -> TubePlan:
    neurons = sum(network.nodes[sink].size for sink in network.sinks)
    single, double = (a * network.products + b * neurons for a, b in (_SINGLE, _DOUBLE))
    exact, columns = plan.rows.exact, plan.rows.columns
    claimed = plan.claims + (math.prod(network.in_shape) + columns if exact else plan.claims)
    proven = plan.projections * (1 if exact else 2)
    guessed = plan.guesses * (3 if columns else 2)
    seconds = (guessed * pace.searches + claimed) * single + proven * double
    seconds += (pace.searches + 3) * _BESIDE * neurons
    memory = held(network) * max(4.0 * claimed, 8.0 * proven)
    memory += COLUMN_BYTES + _CLAIMED * neurons
    return replace(plan, seconds=seconds, memory=memory)
