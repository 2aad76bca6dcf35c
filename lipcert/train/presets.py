"""Recipes that need no tuning: what ``--preset`` chooses wherever the command line says nothing.

    quick      a few minutes: what can be had at all
    standard   a quarter of an hour for small images, an hour for photographs
    published  the bound, the loss and the epochs of Huang et al. (NeurIPS 2021), however long

The first two train with the product of norms, whose steps are the fastest, so that a network sees
its images many times; ``auto`` proves more of it than the training bound believes. Of photographs
their loss asks a rival class for no more room than it needs (``emma``), which keeps clean accuracy;
of small images, whose clean accuracy has some to spare, it is the published one (``gloro``) at a
tenth beyond eps. Small images, and photographs for which a network came in, have many small batches
and a shorter ramp. They end by the clock, and with small sets of images when these were seen often
enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from lipcert.options import Epsilon
from lipcert.train.recipe import Recipe

PresetName = Literal["quick", "standard", "published"]
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Situation:
    """What a preset depends on: whether the images are photographs, whether the network is one of
    isometries, and whether it comes in pretrained."""

    photographs: bool
    patches: bool
    pretrained: bool

    @classmethod
    def all(cls) -> Iterator[Situation]:
        return (cls(*values) for values in product((False, True), repeat=3))


_FAST: Values = {
    "bound": "global",
    "loss": "emma",
    "activation": "maxmin",
    "eps_factor": 1.0,
    "sparsity": 0.0,
    "rate": 1e-3,
    "last_rate": 1e-5,
    "rate_schedule": "cosine",
    "batch_size": 128,
    "ema": 0.998,
    "ramp_share": 0.5,
}
# Small batches: in as much processor time, MNIST from scratch at 1.58 is certified more
# often than in batches of 128 (see tests/benchmarks/RESULTS.md).
_SMALL: Values = {
    **_FAST,
    "loss": "gloro",
    "eps_factor": 1.1,
    "batch_size": 64,
    "rate": 2e-3,
    "ramp_share": 0.25,
}
# Photographs come with networks whose norms are orders of magnitude too large: steps have to be
# many and long before anything is certified. In 42 s of processor time `cifar10_wide_sgd` at 36/255
# has an estimate of 28 % so, and of 7 % in batches of 128 at 1e-3, at the same clean accuracy (see
# tests/benchmarks/RESULTS.md).
_PHOTOGRAPHS: Values = {**_FAST, "batch_size": 64, "rate": 4e-3, "ramp_share": 0.25}
_PATCHES: Values = {
    **_FAST,
    "loss": "offset",
    "activation": "keep",
    "batch_size": 256,
    "rate": 3e-3,
    "ramp_share": 0.0,
}
# As in the longest run of tests/benchmarks/RESULTS.md.
_PHOTOGRAPH_PATCHES: Values = {**_PATCHES, "eps_factor": 1.3}
_PUBLISHED: Values = {
    "bound": "local",
    "loss": "gloro",
    "activation": "clipped",
    "eps_factor": 1.25,
    "sparsity": 0.01,
    "rate": 1e-3,
    "last_rate": 1e-5,
    "rate_schedule": "exponential",
    "ema": 0.995,
    "ramp_share": 0.5,
}
# Minutes for small images and for photographs, and how often an image is seen at most.
_TIMES = {"quick": (3.0, 10.0, 60), "standard": (15.0, 60.0, 300)}
_PUBLISHED_EPOCHS = (300, 800)


@dataclass(frozen=True)
class Wanted:
    """A radius, a preset and what overrides it: ``given`` has fields of ``Recipe``; one that is
    None is the preset's to choose. ``recipe`` follows once the images and the network are known."""

    eps: Epsilon
    preset: PresetName
    given: Values

    def check(self) -> None:
        """Raises ``UsageError`` for what no situation allows, before anything is read."""
        for situation in Situation.all():
            self.recipe(situation)

    def recipe(self, situation: Situation) -> Recipe:
        chosen = dict(_values(self.preset, situation))
        given = {name: value for name, value in self.given.items() if value is not None}
        if "epochs" in given and "minutes" not in given:
            chosen["minutes"] = None
        chosen |= given
        share = chosen.pop("ramp_share")
        left = max(0.0, chosen["epochs"] - chosen.get("warmup", 0.0))
        chosen.setdefault("ramp", share * left)
        return Recipe(eps=self.eps, **chosen)


def _values(name: PresetName, situation: Situation) -> Values:
    if name == "published" and not situation.patches:
        activation = "clipped" if situation.pretrained else "maxmin-clipped"
        epochs = _PUBLISHED_EPOCHS[situation.photographs]
        return {**_PUBLISHED, "activation": activation, "epochs": epochs, "minutes": None}
    photographs = _PHOTOGRAPHS if situation.pretrained else _FAST
    values = photographs if situation.photographs else _SMALL
    if situation.patches:
        values = _PHOTOGRAPH_PATCHES if situation.photographs else _PATCHES
    if name == "published":
        return {**values, "epochs": _PUBLISHED_EPOCHS[situation.photographs], "minutes": None}
    small, large, epochs = _TIMES[name]
    return {**values, "epochs": epochs, "minutes": large if situation.photographs else small}
