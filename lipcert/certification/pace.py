"""What each effort may spend."""

from __future__ import annotations

from dataclasses import dataclass

from lipcert.options import Effort


@dataclass(frozen=True)
class Pace:
    """What an effort spends: steps of the slopes at each stage of a verdict, in a guess, and for a
    radius; whether wide layers get chains; how many steps the slopes of refined boxes take (None:
    no refined boxes); and into how many leaves a margin that is still open may be split, with the
    seconds that this may take for each sample."""

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
    "fast": Pace(
        (20,),
        5,
        20,
        chains=False,
        refine=None,
        leaves=0,
        leaf_seconds=0.0,
        attack_steps=16,
        attack_restarts=0,
    ),
    "standard": Pace(
        (20, 60, 150),
        8,
        40,
        chains=True,
        refine=8,
        leaves=0,
        leaf_seconds=0.0,
        attack_steps=20,
        attack_restarts=0,
    ),
    "max": Pace(
        (20, 60, 200),
        15,
        100,
        chains=True,
        refine=20,
        leaves=1000,
        leaf_seconds=30.0,
        attack_steps=40,
        attack_restarts=1,
    ),
}
