"""What each effort may spend."""

from __future__ import annotations

from dataclasses import dataclass

from lipcert.options import Effort


@dataclass(frozen=True)
class Pace:
    """What an effort spends.

    ``own_norms``: whether samples get norms and chains of their own. ``stages``: steps of the
    slopes at each stage of a verdict, sought at an eps that is at most ``near`` times the guessed
    radius; ``guess_steps`` at each of ``guesses`` of the radius, ``radius_steps`` for it, which is
    found in so many ``trials``, more only where they find none. ``work``: boxes are refined for a
    radius where a layer takes no more, in values of all layers for each of its neurons.
    ``refine``: steps for boxes that are refined for a verdict, None for none. ``leaves``: how many
    a margin may be split into, in ``leaf_seconds`` a sample. ``attack_steps`` and
    ``attack_restarts``: of the attack.
    """

    own_norms: bool
    stages: tuple[int, ...]
    near: float
    guesses: int
    guess_steps: int
    radius_steps: int
    trials: int
    work: float
    refine: int | None
    leaves: int
    leaf_seconds: float
    attack_steps: int
    attack_restarts: int


PACES: dict[Effort, Pace] = {
    "fast": Pace(False, (10,), 1.1, 3, 4, 5, 3, 0.0, None, 0, 0.0, 5, 0),
    "standard": Pace(True, (20, 60, 60), 3.0, 5, 14, 30, 40, 2.0**16, 8, 48, 5.0, 20, 0),
    "max": Pace(True, (20, 60, 200), 3.0, 8, 20, 100, 40, 2.0**22, 20, 4000, 30.0, 40, 1),
}
