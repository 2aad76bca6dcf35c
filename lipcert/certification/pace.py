"""What each effort may spend."""

from __future__ import annotations

from dataclasses import dataclass

from lipcert.bounds.refined import Refinement
from lipcert.options import Effort

_GIBIBYTE = 2.0**30


@dataclass(frozen=True)
class TubePace:
    """What a sketched tube may take: ``projections`` of a proof, of the claim before it, and of
    each of the ``searches`` for its radius; ``columns`` of a claim for errors by themselves; and
    how often a proof is tried. Fewer are taken, or no tube at all, where one sample would take more
    ``seconds`` or ``memory``, in bytes, by what the graph tells."""

    projections: int
    claims: int
    columns: int
    guesses: int
    searches: int
    tries: int
    seconds: float
    memory: float


@dataclass(frozen=True)
class Pace:
    """What an effort spends.

    ``own_norms``: whether samples get norms and chains of their own.

    Radii: ``guess_steps`` of the slopes at each of ``guesses``, for ``guessed_classes`` of each
    sample; ``radius_steps`` where they end, and as many ``trials``, more only where they find none;
    and how often all is prepared ``again``, where it was aimed at badly. ``chain_work``: norms of
    chains are found roughly where these lead past more values in all. ``boxes``: what goes into
    those that are refined for a radius.

    Verdicts, for each eps up to ``near`` times the radius: steps at each of ``stages``.
    ``coupled``: whether balls are coupled in the last one and for leaves, all segments having norms
    of their own. ``refine``: what goes into boxes of a rung of their own, None for none.
    ``leaves``: how many a margin may be split into, of ``leaf_work`` neurons in all. A sample with
    a margin that the first stage leaves below 0 by more than ``hopeless`` of its clean one goes on
    to refined boxes at once. None of it depends on a clock.

    ``attack_steps`` and ``attack_restarts``: of the attack. ``tube``: of deep networks.
    """

    own_norms: bool
    guesses: int
    guess_steps: int
    guessed_classes: int
    radius_steps: int
    trials: int
    again: int
    chain_work: float
    boxes: Refinement | None
    near: float
    stages: tuple[int, ...]
    coupled: bool
    refine: Refinement | None
    leaves: int
    leaf_work: float
    hopeless: float
    attack_steps: int
    attack_restarts: int
    tube: TubePace


PACES: dict[Effort, Pace] = {
    "fast": Pace(
        own_norms=False,
        guesses=3, guess_steps=4, guessed_classes=2, radius_steps=4, trials=2, again=0,
        chain_work=0.0, boxes=None,
        near=1.0, stages=(10,), coupled=False, refine=None,
        leaves=0, leaf_work=0.0, hopeless=0.0,
        attack_steps=5, attack_restarts=0,
        tube=TubePace(320, 256, 512, 64, 4, 2, 120.0, 3 * _GIBIBYTE),
    ),
    "standard": Pace(
        own_norms=True,
        guesses=5, guess_steps=8, guessed_classes=2, radius_steps=24, trials=40, again=3,
        chain_work=2.0**18, boxes=Refinement(work=2.0**16, tried=2.0**24, worth=0.7, more=4),
        near=3.0, stages=(20, 40), coupled=False,
        refine=Refinement(steps=8, work=2.0**23),
        leaves=48, leaf_work=2.0**20, hopeless=0.75,
        attack_steps=20, attack_restarts=0,
        tube=TubePace(1536, 1024, 6144, 128, 6, 2, 240.0, 4 * _GIBIBYTE),
    ),
    "max": Pace(
        own_norms=True,
        guesses=8, guess_steps=20, guessed_classes=4, radius_steps=100, trials=40, again=6,
        chain_work=2.0**22, boxes=Refinement(work=2.0**20, tried=2.0**24, worth=0.8, more=6),
        near=3.0, stages=(20, 60, 200), coupled=True,
        refine=Refinement(steps=20, work=2.0**25),
        leaves=4000, leaf_work=2.0**24, hopeless=1.5,
        attack_steps=40, attack_restarts=1,
        tube=TubePace(3072, 2048, 16384, 256, 10, 4, 1800.0, 8 * _GIBIBYTE),
    ),
}  # fmt: skip
