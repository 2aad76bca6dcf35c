"""What each effort may spend."""

from __future__ import annotations

from dataclasses import dataclass

from lipcert.options import Effort


@dataclass(frozen=True)
class Pace:
    """What an effort spends.

    ``stages``: steps of the slopes at each stage of a verdict, ``guess_steps`` at each guess of the
    radius, ``radius_steps`` for it. ``chains``: of wide layers too. ``refine``: steps for refined
    boxes, None for none. ``leaves``: how many a margin may be split into, in ``leaf_seconds`` a
    sample. ``attack_steps``, ``attack_restarts``: of the attack.
    """

    stages: tuple[int, ...]
    guess_steps: int
    radius_steps: int
    chains: bool
    refine: int | None
    leaves: int
    leaf_seconds: float
    attack_steps: int
    attack_restarts: int


PACES: dict[Effort, Pace] = {
    "fast": Pace((20,), 5, 20, False, None, 0, 0.0, 16, 0),
    "standard": Pace((20, 60, 150), 8, 40, True, 8, 0, 0.0, 20, 0),
    "max": Pace((20, 60, 200), 15, 100, True, 20, 4000, 30.0, 40, 1),
}
