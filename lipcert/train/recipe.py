"""How a network is trained, in one record that goes into ``recipe.json``."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from lipcert.errors import UsageError
from lipcert.options import Epsilon
from lipcert.train.bounds import BoundName
from lipcert.train.class_weights import ClassWeights
from lipcert.train.data import Augment
from lipcert.train.losses import LossName
from lipcert.train.rewriting import ActivationChoice, Sharing
from lipcert.train.schedules import LearningRate, Schedule
from lipcert.train.selection import Selection

Optimiser = Literal["adam", "adamw"]
Temperature = Literal["fixed", "learned"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Recipe:
    """Everything that the trained weights depend on, beside the file, the data and the machine.

    ``eps``: the radius to certify, in the data's unit; training aims at ``eps_factor`` times it.
    ``percentile``: where thresholds start. ``epochs``, ``warmup`` (clean) and ``ramp`` (eps up, κ
    down to ``kappa``) in epochs. ``gap``: the margin that the hinge asks for. ``sparsity``: the
    weight of that loss. ``power_steps``: iterations of each sample's norms. ``ema``: decay a step
    of the averaged weights, 0 for none. ``validation``: the share of the training images held out.
    ``limit``: use only so many training images. ``temperature``: whether the loss learns one for
    the logits. ``select``: which epoch's weights are exported. ``patience``: end where so many
    epochs at the full eps bring no better one; None never. ``minutes``: the training's time by the
    clock (see ``lipcert.train.plan``), ``epochs`` at most and ``warmup`` and ``ramp`` in
    proportion; None: as long as the epochs take. ``class_weights``: how much a sample counts by its
    class; None: all the same. ``distil``, ``distil_features``: the weights of the distillation
    of logits, and of the input of the last layer, from the file that came in, at the start; they
    fall to 0 over the ramp. ``precision``: of the layers of a patch network
    in a step; everything else, and every validation, is in float32.
    """

    eps: Epsilon
    eps_factor: float = 1.25
    bound: BoundName = "local"
    loss: LossName = "gloro"
    activation: ActivationChoice = "clipped"
    thresholds: Sharing = "neuron"
    percentile: float = 99.5
    epochs: int = 20
    warmup: float = 0.0
    ramp: float = 10.0
    kappa: float = 0.0
    gap: float = 1.0
    sparsity: float = 0.01
    batch_size: int = 256
    optimiser: Optimiser = "adam"
    rate: float = 1e-3
    last_rate: float = 1e-5
    rate_schedule: LearningRate = "exponential"
    weight_decay: float = 0.0
    clip_norm: float = 10.0
    power_steps: int = 2
    ema: float = 0.995
    validation: float = 0.1
    augment: Augment = "auto"
    limit: int | None = None
    temperature: Temperature = "fixed"
    select: Selection = field(default_factory=Selection)
    patience: int | None = None
    minutes: float | None = None
    class_weights: ClassWeights | None = None
    distil: float = 0.0
    distil_features: float = 0.0
    precision: Precision = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_numbers()
        if not 0 < self.validation < 1:
            raise UsageError(f"--validation {self.validation}: give a share above 0 and below 1")
        if self.patience is not None and self.patience < 1:
            raise UsageError(f"--patience {self.patience}: give at least 1 epoch")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise UsageError(f"--minutes {self.minutes}: give a time above 0")
        if self.limit is not None and self.limit < 2:
            raise UsageError(f"--train-limit {self.limit}: give at least 2")
        if self.warmup + self.ramp > self.epochs:
            raise UsageError(
                f"--warmup {self.warmup:g} and --ramp {self.ramp:g}: end after all --epochs "
                f"{self.epochs}, so that the full eps is never trained for"
            )

    def _check_choices(self) -> None:
        for name, value, allowed in (
            ("--bound", self.bound, get_args(BoundName)),
            ("--loss", self.loss, get_args(LossName)),
            ("--activation", self.activation, get_args(ActivationChoice)),
            ("--thresholds", self.thresholds, get_args(Sharing)),
            ("--optimiser", self.optimiser, get_args(Optimiser)),
            ("--lr-schedule", self.rate_schedule, get_args(LearningRate)),
            ("--augment", self.augment, get_args(Augment)),
            ("--temperature", self.temperature, get_args(Temperature)),
            ("--precision", self.precision, get_args(Precision)),
        ):
            if value not in allowed:
                raise UsageError(f"{name} {value!r}: choose one of {', '.join(allowed)}")

    def _check_numbers(self) -> None:
        if self.eps.value <= 0:
            raise UsageError(f"--eps {self.eps.text}: training needs a radius above 0")
        for name, number, least, most in (
            ("--eps-factor", self.eps_factor, 1e-6, math.inf),
            ("--percentile", self.percentile, 50, 100),
            ("--epochs", self.epochs, 1, math.inf),
            ("--warmup", self.warmup, 0, math.inf),
            ("--ramp", self.ramp, 0, math.inf),
            ("--kappa", self.kappa, 0, 1),
            ("--gap", self.gap, 0, math.inf),
            ("--sparsity", self.sparsity, 0, math.inf),
            ("--batch-size", self.batch_size, 1, math.inf),
            ("--lr", self.rate, 1e-12, math.inf),
            ("--lr-end", self.last_rate, 1e-12, self.rate),
            ("--weight-decay", self.weight_decay, 0, math.inf),
            ("--clip-norm", self.clip_norm, 1e-12, math.inf),
            ("--power-steps", self.power_steps, 1, 1000),
            ("--ema", self.ema, 0, 1 - 1e-9),
            ("--distil", self.distil, 0, math.inf),
            ("--distil-features", self.distil_features, 0, math.inf),
            ("--seed", self.seed, 0, 2**31 - 1),
        ):
            # Written so that a NaN fails it as well.
            if not least <= number <= most:
                span = f"from {least:g} to {most:g}" if most < math.inf else f"from {least:g} up"
                raise UsageError(f"{name} {number}: give a number {span}")

    @property
    def training_eps(self) -> float:
        """The radius at the end of the ramp."""
        return float(self.eps.value) * self.eps_factor

    @property
    def schedule(self) -> Schedule:
        return Schedule(
            epochs=self.epochs,
            warmup=self.warmup,
            ramp=self.ramp,
            eps=self.training_eps,
            kappa=self.kappa,
            rate=self.rate,
            last_rate=self.last_rate,
            kind=self.rate_schedule,
        )

    def to_json(self) -> dict[str, Any]:
        weights = None if self.class_weights is None else self.class_weights.text
        texts = {"eps": self.eps.text, "select": self.select.text, "class_weights": weights}
        return asdict(self) | texts

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON of the recipe."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()
