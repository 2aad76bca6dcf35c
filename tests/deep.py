"""Deep random networks as people train them, normalised as a batch norm leaves them, with weights
that are out to deceive an analysis; and attacks on what a sketched tube certifies of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from assault import Outcome, assault
from laws import normal, pick, places, seeded, uniform
from torch import Generator, Tensor

from lipcert.certification.analysis import Analysis
from lipcert.certification.findings import Findings
from lipcert.certification.ieee import ieee_arithmetic
from lipcert.certification.pace import PACES, Pace, TubePace
from lipcert.certification.rungs.attack import Attacked
from lipcert.certification.rungs.tube import Nothing, TubeRadius
from lipcert.certification.samples import Samples
from lipcert.coins import Coins
from lipcert.errors import CannotCertify
from lipcert.network import Network, NetworkBuilder
from lipcert.network.activations import Activation, GroupMax, PReLU, Silu, relu
from lipcert.network.operators import Convolution, Dense, Diagonal, Select
from lipcert.norms import Budget
from lipcert.options import Deployed, Epsilon, Options

IN_SHAPE = (1, 3, 6, 6)
# Of most networks that are attacked: as deep, and a third of the work.
_SMALL = (1, 3, 4, 4)
_CHANNELS, _GROWTH = 4, 2


class DeepGrower:
    """Pieces of deep networks, each put after a node and returning its last one. ``seen``: inputs
    by which values are normalised. ``hostile``: whether weights are spoiled here and there."""

    def __init__(
        self, generator: Generator, *, hostile: bool, shape: tuple[int, ...] = IN_SHAPE
    ) -> None:
        self.generator, self.hostile, self.small = generator, hostile, shape == _SMALL
        self.builder = NetworkBuilder(shape)
        self.seen = uniform((3, *shape), generator)
        self.kind = self._activation()

    def _activation(self) -> Activation:
        leaky = PReLU(torch.full((), 0.1, dtype=torch.float64))
        # Bounds of smooth ones take longest.
        kinked = (
            3 * [relu(), relu(), relu(), leaky] if self.small else [relu(), relu(), relu(), leaky]
        )
        return pick([*kinked, Silu()], self.generator)

    def _sometimes(self, chance: float = 0.25) -> bool:
        return self.hostile and float(uniform((), self.generator)) < chance

    def bent(self, node: int) -> int:
        return self.builder.activation(self.kind, node, "activation")

    def scaled(self, node: int, scale: Tensor | None, bias: Tensor | None) -> int:
        operator = Diagonal.of(scale, bias, self.builder.shape(node))
        return self.builder.operator(operator, node, "scale")

    def convolution(self, node: int, channels: int, width: int = 3) -> int:
        """Its own weights; or a large multiple of them, taken back behind it; or two of which the
        most cancels; or such as have a large offset, taken back too."""
        shape, pad = self.builder.shape(node), width // 2
        weight = normal((channels, shape[1], width, width), self.generator)
        weight /= math.sqrt(weight[0].numel())

        def put(weight: Tensor) -> int:
            operator = Convolution.of(weight, None, shape, padding=((pad, pad), (pad, pad)))
            return self.builder.operator(operator, node, "convolution")

        if self._sometimes():
            power = 2.0 ** float(pick([-40, -12, 12, 40], self.generator))
            back = torch.full((), 1 / power, dtype=torch.float64)
            return self.scaled(put(weight * power), back, None)
        if self._sometimes():
            other = 10.0 ** float(2 * uniform((), self.generator)) * torch.randn(
                weight.shape, generator=self.generator, dtype=torch.float64
            )
            return self.builder.sum([put(weight + other), put(-other)], "cancelling")
        if self._sometimes():
            far = torch.full((), 10.0 ** float(4 * uniform((), self.generator))).double()
            there = self.scaled(put(weight), None, far)
            return self.scaled(there, None, -far)
        return put(weight)

    def normalised(self, node: int) -> int:
        """Each channel by its mean and deviation over ``seen``, and a scale and a bias."""
        values = self.builder.build(node).values(self.seen)[-1]
        axes = (0, 1, 3, 4)
        deviation = values.std(axes, keepdim=True)[0].clamp(min=1e-3)
        mean = values.mean(axes, keepdim=True)[0]
        gain = 0.7 + 0.6 * uniform(mean.shape, self.generator)
        bias = 0.3 * normal(mean.shape, self.generator)
        return self.scaled(node, gain / deviation, bias - gain * mean / deviation)

    def residual(self, node: int) -> int:
        inner = self.bent(self.normalised(self.convolution(node, self._channels(node))))
        branch = self.normalised(self.convolution(inner, self._channels(node)))
        return self.bent(self.builder.sum([branch, node], "residual"))

    def dense(self, node: int) -> int:
        """A block of a network whose layers are concatenated."""
        inner = self.bent(self.convolution(self.bent(self.normalised(node)), _CHANNELS, 1))
        fresh, shape = self.convolution(inner, _GROWTH), self.builder.shape(node)
        kept, size = math.prod(shape), math.prod(self.builder.shape(fresh))
        joined = (1, shape[1] + _GROWTH, *shape[2:])
        first, last = torch.arange(kept), torch.arange(size)
        none = torch.full_like
        parts = [
            Select.of(torch.cat([first, none(last, -1)]).reshape(joined), shape),
            Select.of(
                torch.cat([none(first, -1), last]).reshape(joined), self.builder.shape(fresh)
            ),
        ]
        both = [
            self.builder.operator(part, at, "concatenation")
            for part, at in zip(parts, (node, fresh), strict=True)
        ]
        return self.builder.sum(both, "concatenation")

    def plain(self, node: int) -> int:
        return self.bent(self.normalised(self.convolution(node, _CHANNELS)))

    def pooled(self, node: int) -> int:
        """By the mean or the largest of 2×2."""
        shape = self.builder.shape(node)
        if shape[2] < 4:
            return self.plain(node)
        if pick([True, False], self.generator):
            mean = torch.full((shape[1], 1, 2, 2), 0.25, dtype=torch.float64)
            operator = Convolution.of(mean, None, shape, stride=(2, 2), groups=shape[1])
            return self.builder.operator(operator, node, "mean")
        index = places(shape).unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
        windows = self.builder.operator(Select.of(index, shape), node, "windows")
        return self.builder.activation(GroupMax(), windows, "maximum")

    def _channels(self, node: int) -> int:
        return self.builder.shape(node)[1]

    def head(self, node: int, classes: int) -> Network:
        shape = self.builder.shape(node)
        flat = Select.of(places(shape).reshape(1, -1), shape)
        node = self.builder.operator(flat, node, "flatten")
        weight = normal((classes, math.prod(shape)), self.generator) / math.sqrt(math.prod(shape))
        dense = Dense.of(weight, None, (1, math.prod(shape)))
        return self.builder.build(self.builder.operator(dense, node, "head"))


def deep_network(
    generator: Generator, *, blocks: int = 8, hostile: bool = True,
    shape: tuple[int, ...] = IN_SHAPE,
) -> Network:  # fmt: skip
    """Some 10 to 25 layers, 4 classes, with one pooling in the middle."""
    grower = DeepGrower(generator, hostile=hostile, shape=shape)
    node = grower.bent(grower.normalised(grower.convolution(0, _CHANNELS)))
    for block in range(blocks):
        kinds = [grower.residual, grower.residual, grower.dense, grower.dense, grower.plain]
        node = grower.pooled(node) if block == blocks // 2 else pick(kinds, generator)(node)
    return grower.head(node, 4)


class Lean(Analysis):
    """With tubes of few tangents, whose radii are a little smaller."""

    @property
    def pace(self) -> Pace:
        return replace(PACES["fast"], tube=TubePace(192, 128, 48, 32, 3, 1, 120.0, 2.0**32))


class SideBySide(TubeRadius):
    """Samples of small networks take little more time together than one of them."""

    at_once = 128


@ieee_arithmetic()
def tube_radii(
    network: Network, x: Tensor, labels: Tensor, options: Options,
    kind: type[Analysis] = Analysis,
) -> Tensor:  # fmt: skip
    """Certified radii ``(B,)`` by the attack and the tube alone, at any depth, without the norms
    that other bounds need; 0 and less where there are none."""
    budget = Budget(
        Coins.of(options.seed).seed, probability=options.failure_probability, samples=len(x),
        shards=1, device="cpu",
    )  # fmt: skip
    analysis = kind.of(network, options, budget, device="cpu", reach=None, softmax=False)
    rungs = Nothing(), Attacked(analysis), SideBySide.of(analysis, 0.5)
    batch = Samples.of(analysis, x, labels, budget.open(torch.arange(len(x))))
    known = Findings.of(batch.x, batch.logits, batch.labels, options)
    for rung in rungs:
        known = known.after(rung.climb(batch, known))
    known.check(batch.allowance.streams)
    return known.radius


@dataclass(frozen=True, eq=False)
class Attack:
    """Of so many samples of one network, what became of the certificates, if there are any."""

    samples: int
    certificates: int
    outcome: Outcome | None

    @property
    def broken(self) -> int:
        return 0 if self.outcome is None else int(self.outcome.broken.sum())


def attacked(
    seed: int, *, samples: int = 4, steps: int = 10, shrink: float = 1.0, lean: bool = False
) -> Attack:
    """A network of this seed, tubes around samples, and an attack within ``1/shrink`` times their
    radii; ``lean``: a smaller network, and tubes of few tangents."""
    generator = seeded(seed)
    network = deep_network(
        generator, blocks=pick([6, 8, 10], generator), hostile=seed % 4 != 0,
        shape=_SMALL if lean else IN_SHAPE,
    )  # fmt: skip
    names: tuple[Deployed, ...] = ("float32", "real", "float32", "float16")
    deployed = names[seed // 4 % 4]
    dtype = {"real": torch.float64, "float16": torch.float16}.get(deployed, torch.float32)
    x = uniform((samples, *network.in_shape), generator).to(dtype).double()
    labels = network.logits(x).argmax(1)
    options = Options(
        eps=(Epsilon.parse("1e-4"),), effort="fast", deployed=deployed, seed=seed,
        failure_probability=1e-6,
    )  # fmt: skip
    try:
        radii = tube_radii(network, x, labels, options, Lean if lean else Analysis)
    except CannotCertify as refused:
        # Hostile weights may lie outside the deployed format, which is said and certifies nothing.
        if "overflows the deployed format" not in str(refused):
            raise
        return Attack(samples, 0, None)
    rows = (radii > 0).nonzero().flatten()
    if not len(rows):
        return Attack(samples, 0, None)
    run = network.to(dtype=torch.float64 if deployed == "real" else torch.float32)
    outcome = assault(
        network, {"as deployed": run.logits}, x[rows], labels[rows], radii[rows] / shrink,
        generator, steps=steps, dtype=run.anchor.dtype,
    )  # fmt: skip
    return Attack(samples, len(rows), outcome)
