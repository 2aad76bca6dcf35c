"""The one list of cases that every law is tested on: operators, activations, joints, random
networks.

A new operator, activation or joint gets a line here, and the laws of all packages run on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Generator, Tensor

from lipcert.certification import Published, Rung
from lipcert.certification.analysis import Analysis
from lipcert.certification.duals import Duals
from lipcert.certification.rungs import ladder
from lipcert.certification.rungs.attack import Attacked
from lipcert.certification.rungs.dual import DualAt, DualRadius
from lipcert.certification.rungs.local import Largest, Radius
from lipcert.certification.rungs.refined import refined_at
from lipcert.certification.rungs.split import SplitAt
from lipcert.certification.rungs.tube import TubeRadius
from lipcert.network import Network, NetworkBuilder
from lipcert.network.activations import (
    Activation,
    Clip,
    Elu,
    Erf,
    Gelu,
    GeluTanh,
    GroupMax,
    GroupSort,
    HardSwish,
    Identity,
    MaxMin,
    Mish,
    PReLU,
    Sigmoid,
    Silu,
    Softplus,
    Tanh,
)
from lipcert.network.joints import (
    Curve,
    InverseLength,
    Joint,
    MatrixProduct,
    Product,
    Quotient,
    Softmax,
    Standardise,
)
from lipcert.network.operators import (
    Convolution,
    Dense,
    Diagonal,
    Operator,
    Select,
    Shape,
    TransposedConvolution,
)
from lipcert.norms import Budget, NormCoins

OperatorBuilder = Callable[[torch.dtype, Generator], Operator]
ActivationBuilder = Callable[[torch.dtype, Generator], Activation]
Choice = TypeVar("Choice")

DTYPES = (torch.float32, torch.float64)


def seeded(seed: int) -> Generator:
    return torch.Generator().manual_seed(seed)


def normal(
    shape: Sequence[int], generator: Generator, dtype: torch.dtype = torch.float64
) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(dtype)


def uniform(
    shape: Sequence[int], generator: Generator, dtype: torch.dtype = torch.float64
) -> Tensor:
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float64).to(dtype)


def pick(options: Sequence[Choice], generator: Generator) -> Choice:
    return options[int(torch.randint(len(options), (), generator=generator))]


def dense_twin(operator: Operator) -> Tensor:
    """The matrix ``A``, one column for each unit vector that the operator is applied to."""
    size = math.prod(operator.in_shape)
    entries = operator.entries()
    dtype = torch.float64 if entries is None else entries.dtype
    unit = torch.eye(size, dtype=dtype).reshape(size, *operator.in_shape)
    return operator.apply(unit).flatten(1).mT


def floats_to(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A change for ``convert``: another type for floating tensors, indices as they are."""
    return lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor


# Operators ---------------------------------------------------------------------------------------


def _dense(in_shape: Shape, outputs: int, *, bias: bool = True) -> OperatorBuilder:
    def build(dtype: torch.dtype, generator: Generator) -> Dense:
        weight = normal((outputs, in_shape[-1]), generator, dtype)
        return Dense.of(weight, normal((outputs,), generator, dtype) if bias else None, in_shape)

    return build


def _convolution(
    in_shape: Shape,
    weight_shape: Shape,
    *,
    stride: Sequence[int] | None = None,
    padding: Sequence[tuple[int, int]] | None = None,
    dilation: Sequence[int] | None = None,
    groups: int = 1,
    bias: bool = True,
) -> OperatorBuilder:
    def build(dtype: torch.dtype, generator: Generator) -> Convolution:
        return Convolution.of(
            normal(weight_shape, generator, dtype),
            normal(weight_shape[:1], generator, dtype) if bias else None,
            in_shape,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )

    return build


def _transposed(
    in_shape: Shape,
    weight_shape: Shape,
    space: Sequence[int],
    *,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]] | None = None,
    dilation: Sequence[int] | None = None,
    groups: int = 1,
    bias: bool = True,
) -> OperatorBuilder:
    def build(dtype: torch.dtype, generator: Generator) -> TransposedConvolution:
        outputs = weight_shape[1] * groups
        return TransposedConvolution.of(
            normal(weight_shape, generator, dtype),
            normal((outputs,), generator, dtype) if bias else None,
            in_shape,
            space,
            stride=stride,
            padding=padding or [(0, 0)] * len(space),
            dilation=dilation or [1] * len(space),
            groups=groups,
        )

    return build


def _diagonal(shape: Shape, scale: Shape | None, bias: Shape | None) -> OperatorBuilder:
    def build(dtype: torch.dtype, generator: Generator) -> Diagonal:
        return Diagonal.of(
            None if scale is None else normal(scale, generator, dtype),
            None if bias is None else normal(bias, generator, dtype),
            shape,
        )

    return build


def _select(in_shape: Shape, index: Tensor) -> OperatorBuilder:
    return lambda dtype, generator: Select.of(index, in_shape)


def places(shape: Shape) -> Tensor:
    """The places of a tensor's values in its flattened self, in its own shape."""
    return torch.arange(math.prod(shape)).reshape(shape)


def padded(index: Tensor, sides: Sequence[int]) -> Tensor:
    """The index of the same values with constant zeros around them."""
    return torch.nn.functional.pad(index, tuple(sides), value=-1)


OPERATOR_CASES: dict[str, OperatorBuilder] = {
    "dense": _dense((7,), 4),
    "dense, leading 1": _dense((1, 6), 5),
    "dense, leading axes": _dense((2, 3, 4), 5),
    "dense, no bias": _dense((3,), 8, bias=False),
    "conv 1-D": _convolution((1, 2, 9), (3, 2, 3)),
    "conv 1-D, stride and dilation": _convolution(
        (1, 2, 11), (3, 2, 3), stride=(2,), padding=[(2, 2)], dilation=(2,)
    ),
    "conv 2-D": _convolution((1, 2, 5, 6), (3, 2, 3, 3), padding=[(1, 1), (1, 1)]),
    "conv 2-D, no bias, 1×1": _convolution((1, 4, 3, 3), (2, 4, 1, 1), bias=False),
    "conv 2-D, even kernel, stride 2": _convolution(
        (1, 2, 6, 6), (3, 2, 4, 4), stride=(2, 2), padding=[(1, 1), (1, 1)]
    ),
    "conv 2-D, even kernel, same size": _convolution(
        (1, 2, 4, 4), (2, 2, 2, 2), padding=[(0, 1), (0, 1)]
    ),
    "conv 2-D, groups": _convolution(
        (1, 4, 4, 5), (6, 2, 3, 2), padding=[(1, 1), (0, 0)], groups=2
    ),
    "conv 2-D, depthwise": _convolution(
        (1, 3, 5, 5), (3, 1, 3, 3), padding=[(1, 1), (1, 1)], groups=3
    ),
    "conv 2-D, depthwise, two each": _convolution((1, 3, 4, 4), (6, 1, 2, 2), groups=3),
    "conv 2-D, asymmetric padding": _convolution(
        (1, 2, 4, 5), (2, 2, 3, 3), stride=(1, 2), padding=[(0, 2), (3, 1)]
    ),
    "conv 2-D, negative padding": _convolution(
        (1, 2, 6, 6), (2, 2, 2, 3), padding=[(-1, -2), (2, -1)]
    ),
    "conv 2-D, unread cells": _convolution((1, 2, 7, 6), (2, 2, 2, 2), stride=(3, 4)),
    "conv 2-D, outputs of padding only": _convolution(
        (1, 1, 2, 2), (2, 1, 1, 1), stride=(7, 2), padding=[(5, 0), (3, 3)]
    ),
    "transposed 1-D": _transposed((1, 3, 5), (3, 2, 3), [11], stride=[2]),
    "transposed 2-D, stride 2, more": _transposed(
        (1, 3, 3, 4), (3, 2, 3, 3), [6, 8], stride=[2, 2], padding=[(1, 1), (1, 1)]
    ),
    "transposed 2-D, groups, dilation, asymmetric": _transposed(
        (1, 4, 3, 3),
        (4, 1, 2, 3),
        [6, 4],
        stride=[2, 1],
        padding=[(0, 1), (1, 2)],
        dilation=[2, 2],
        groups=2,
        bias=False,
    ),
    "conv 2-D, two images": _convolution(
        (2, 2, 4, 4), (3, 2, 3, 3), stride=(2, 1), padding=[(1, 1), (1, 1)]
    ),
    "conv 2-D, everything": _convolution(
        (2, 4, 7, 6),
        (6, 2, 2, 3),
        stride=(3, 2),
        padding=[(2, 1), (-1, 2)],
        dilation=(2, 1),
        groups=2,
    ),
    "conv 3-D": _convolution((1, 2, 3, 4, 3), (2, 2, 2, 3, 2), padding=[(0, 0), (1, 1), (0, 0)]),
    "conv 3-D, stride, groups": _convolution(
        (1, 2, 4, 3, 5),
        (2, 1, 2, 2, 3),
        stride=(2, 1, 2),
        padding=[(1, 0), (0, 0), (1, 1)],
        groups=2,
    ),
    "diagonal": _diagonal((1, 3, 2, 2), (1, 3, 1, 1), (3, 1, 1)),
    "diagonal, one scale": _diagonal((2, 3), (), None),
    "diagonal, a scale each": _diagonal((1, 2, 3), (2, 3), (3,)),
    "diagonal, bias only": _diagonal((1, 4), None, (1, 4)),
    "diagonal, nothing": _diagonal((3,), None, None),
    "select, reshape": _select((1, 2, 3), places((1, 2, 3)).reshape(6)),
    "select, transpose": _select((1, 2, 3, 2), places((1, 2, 3, 2)).permute(0, 2, 3, 1)),
    "select, slice": _select((1, 4, 5), places((1, 4, 5))[:, 1::2, :-1]),
    "select, zero padding": _select((1, 2, 3), padded(places((1, 2, 3)), (1, 2, 0, 1))),
    "select, overlapping windows": _select((1, 7), places((7,)).unfold(0, 3, 2)[None]),
    "select, repeats and zeros": _select((4,), torch.tensor([[3, -1, 3], [0, 3, -1]])),
    "select, all zero": _select((3,), torch.full((2, 2), -1)),
}

# Activations -------------------------------------------------------------------------------------


def limit(value: float | Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if value is None else torch.as_tensor(value, dtype=torch.float64).to(dtype)


def clip(lower: float | None, upper: float | None, dtype: torch.dtype = torch.float64) -> Clip:
    return Clip(limit(lower, dtype), limit(upper, dtype))


def _clip(lower: float | None, upper: float | None) -> ActivationBuilder:
    return lambda dtype, generator: clip(lower, upper, dtype)


def _clip_each(dtype: torch.dtype, generator: Generator) -> Clip:
    return Clip(limit(0.0, dtype), uniform((1, 4, 1, 1), generator, dtype) + 0.1)


def _slope(*slopes: float) -> ActivationBuilder:
    shape = (-1, 1, 1) if len(slopes) > 1 else ()
    return lambda dtype, generator: PReLU(torch.tensor(slopes, dtype=dtype).reshape(shape))


# One sample's shape for all of them: channels at axis 1 in an even number.
ACTIVATION_SHAPE: Shape = (1, 4, 3, 2)

ACTIVATION_CASES: dict[str, ActivationBuilder] = {
    "ReLU": _clip(0.0, None),
    "ReLU-θ": _clip_each,
    "ReLU6": _clip(0.0, 6.0),
    "hard tanh": _clip(-1.0, 1.0),
    "lower limit": _clip(-0.5, None),
    "upper limit": _clip(None, 0.25),
    "no limit": _clip(None, None),
    "crossed limits": _clip(0.5, -0.5),
    "leaky ReLU": _slope(0.1),
    "absolute value": _slope(-1.0),
    "PReLU a channel": _slope(0.0, 0.25, 1.75, -2.5),
    "MaxMin, channels": lambda dtype, generator: MaxMin(1),
    "MaxMin, last axis": lambda dtype, generator: MaxMin(3),
    "MaxMin, written out": lambda dtype, generator: MaxMin(1, 6.25),
    "MaxMin, past others": lambda dtype, generator: MaxMin(1, 6.25, passing=2),
    "GroupMax": lambda dtype, generator: GroupMax(),
    "GroupSort": lambda dtype, generator: GroupSort(),
    "sigmoid": lambda dtype, generator: Sigmoid(),
    "tanh": lambda dtype, generator: Tanh(),
    "erf": lambda dtype, generator: Erf(),
    "softplus": lambda dtype, generator: Softplus(),
    "ELU": lambda dtype, generator: Elu(),
    "ELU, steep": lambda dtype, generator: Elu(1.6732632),
    "ELU, flat": lambda dtype, generator: Elu(0.3),
    "SiLU": lambda dtype, generator: Silu(),
    "GELU": lambda dtype, generator: Gelu(),
    "GELU, tanh": lambda dtype, generator: GeluTanh(),
    "Mish": lambda dtype, generator: Mish(),
    "hard swish": lambda dtype, generator: HardSwish(),
    "identity": lambda dtype, generator: Identity(),
}

# Joints ------------------------------------------------------------------------------------------

# A joint, and where its inputs may lie: anchors between these two numbers.
JOINT_CASES: dict[str, tuple[Joint, float, float]] = {
    "product": (Product((2, 3), (2, 3)), -2.0, 2.0),
    "product with one number each": (Product((2, 3, 2), (2, 1, 1)), -2.0, 2.0),
    "outer product": (Product((3, 1), (1, 4)), -2.0, 2.0),
    "quotient": (Quotient((2, 3), (2, 3)), 0.5, 3.0),
    "quotient by one number": (Quotient((2, 3), (2, 1)), 0.5, 3.0),
    "quotient, negative": (Quotient((4,), (4,)), -3.0, -0.5),
    "matrix product": (MatrixProduct((2,), 3, 4, 2), -2.0, 2.0),
    "matrix product, one row": (MatrixProduct((), 1, 5, 3), -2.0, 2.0),
    "softmax": (Softmax((2, 5)), -3.0, 3.0),
    "softmax, sharp": (Softmax((6,)), -40.0, 40.0),
    "softmax of one": (Softmax((3, 1)), -3.0, 3.0),
    "softmax, masked": (Softmax((4, 5), torch.ones(4, 5).tril(1).double()), -3.0, 3.0),
    "softmax of one that is left": (Softmax((3, 3), torch.eye(3).double()), -30.0, 30.0),
    "layer norm": (InverseLength((2, 6), 1e-5, True, True), -2.0, 2.0),
    "layer norm, off centre": (InverseLength((2, 6), 1e-5, True, True), 90.0, 94.0),
    "layer norm of two": (InverseLength((3, 2), 1e-3, True, True), -2.0, 2.0),
    "RMS norm": (InverseLength((2, 6), 1e-6, False, True), -2.0, 2.0),
    "L2 norm": (InverseLength((2, 6), 0.0, False, False), -2.0, 2.0),
    "L2 norm, floor": (InverseLength((2, 6), 0.0, False, False, 1e-12), -2.0, 2.0),
    "standardise": (Standardise((2, 5)), -2.0, 2.0),
    "square": (Curve((2, 3), "power", 2.0), -2.0, 2.0),
    "cube": (Curve((2, 3), "power", 3.0), -2.0, 2.0),
    "root": (Curve((2, 3), "power", 0.5), 0.2, 4.0),
    "reciprocal root": (Curve((2, 3), "power", -0.5), 0.2, 4.0),
    "reciprocal": (Curve((2, 3), "power", -1.0), -4.0, -0.2),
    "power": (Curve((2, 3), "power", 1.7), 0.2, 4.0),
    "exponential": (Curve((2, 3), "exp"), -4.0, 4.0),
    "logarithm": (Curve((2, 3), "log"), 0.2, 4.0),
}


def joint_anchors(
    case: tuple[Joint, float, float], count: int, generator: Generator
) -> list[Tensor]:
    joint, low, high = case
    return [low + (high - low) * uniform((count, *shape), generator) for shape in joint.in_shapes]


# Networks ----------------------------------------------------------------------------------------


class _Grower:
    """Random pieces of a network, each put after a node and returning its last one."""

    def __init__(self, in_shape: Shape, generator: Generator) -> None:
        self.builder = NetworkBuilder(in_shape)
        self.generator = generator

    def shape(self, node: int) -> Shape:
        return self.builder.shape(node)

    def diagonal(self, node: int) -> int:
        shape = self.shape(node)
        each = (1, shape[1], *(1,) * (len(shape) - 2))
        scale = 0.5 + uniform(pick([(), each, shape], self.generator), self.generator)
        bias = normal(pick([(), each, shape], self.generator), self.generator)
        operator = pick(
            [Diagonal.of(scale, bias, shape), Diagonal.of(scale, None, shape),
             Diagonal.of(None, bias, shape)],
            self.generator,
        )  # fmt: skip
        return self.builder.operator(operator, node, "diagonal")

    def convolution(self, node: int, *, outputs: int | None = None) -> int:
        """``outputs`` None keeps the shape."""
        shape = self.shape(node)
        channels = shape[1]
        shrink = outputs is not None and min(shape[2:]) > 3
        groups = pick([1, channels], self.generator) if outputs is None else 1
        width = 3 if outputs is None else pick([2, 3], self.generator)
        stride = pick([1, 2], self.generator) if shrink else 1
        pad = pick([(0, 1), (1, 1)], self.generator) if shrink else (1, 1)
        weight = normal((outputs or channels, channels // groups, width, width), self.generator)
        weight /= math.sqrt(math.prod(weight.shape[1:]))
        bias = normal(weight.shape[:1], self.generator) if pick([0, 1], self.generator) else None
        return self.builder.operator(
            Convolution.of(
                weight, bias, shape, stride=(stride,) * 2, padding=(pad, pad), groups=groups
            ),
            node,
            "convolution",
        )

    def dense(self, node: int, outputs: int) -> int:
        shape = self.shape(node)
        weight = normal((outputs, shape[-1]), self.generator) / math.sqrt(shape[-1])
        bias = normal((outputs,), self.generator)
        return self.builder.operator(Dense.of(weight, bias, shape), node, "dense")

    def select(self, node: int, index: Tensor, origin: str) -> int:
        return self.builder.operator(Select.of(index, self.shape(node)), node, origin)

    def flatten(self, node: int) -> int:
        return self.select(node, places(self.shape(node)).reshape(1, -1), "flatten")

    def activation(self, node: int) -> int:
        """Any activation that keeps the shape."""
        channels = self.shape(node)[1]
        each = (1, channels, *(1,) * (len(self.shape(node)) - 2))
        options: list[Activation] = [
            clip(0.0, None),
            Clip(limit(0.0, torch.float64), 0.5 + uniform(each, self.generator)),
            clip(-0.5, 0.5),
            PReLU(normal(each, self.generator)),
            Sigmoid(),
            Tanh(),
            Softplus(),
            Elu(1.6732632),
            Silu(),
            Gelu(),
        ]
        if channels % 2 == 0:
            options.append(MaxMin(1))
        return self.builder.activation(pick(options, self.generator), node, "activation")

    def max_pool(self, node: int) -> int:
        """The maximum of windows of 2×2 that overlap."""
        index = places(self.shape(node)).unfold(2, 2, 1).unfold(3, 2, 1).flatten(4)
        windows = self.select(node, index, "windows")
        return self.builder.activation(GroupMax(), windows, "maximum")

    def residual(self, node: int) -> int:
        branch = self.convolution(self.activation(self.convolution(node)))
        shortcut = self.diagonal(node) if pick([0, 1], self.generator) else node
        return self.builder.sum([branch, shortcut], "residual")

    def end(self, node: int, classes: int, ending: str) -> int:
        """The logits, out of an affine layer or of what ``ENDINGS`` names after it."""
        if ending == "maximum":
            wide = self.dense(node, 2 * classes)
            pairs = self.select(wide, places((1, classes, 2)), "pairs")
            return self.builder.activation(GroupMax(), pairs, "maximum")
        last = self.dense(node, classes)
        if ending == "activation":
            return self.activation(last)
        if ending == "two activations":
            return self.activation(self.activation(last))
        if ending == "reshape":
            shape = pick([(classes,), (classes, 1), (1, 1, classes)], self.generator)
            return self.select(self.activation(last), places(shape), "reshape")
        if ending == "sum":
            return self.builder.sum([self.activation(last), self.dense(node, classes)], "sum")
        return last

    def split_and_join(self, node: int) -> int:
        """The first channel goes its own way; all come back in their old places."""
        index = places(self.shape(node))
        size = index[:, :1].numel()
        first = self.diagonal(self.select(node, index[:, :1], "split"))
        rest = self.activation(self.select(node, index[:, 1:], "split"))
        back = places(self.shape(node))
        parts = [
            self.select(first, torch.where(back < size, back, -1), "join"),
            self.select(rest, torch.where(back < size, -1, back - size), "join"),
        ]
        return self.builder.sum(parts, "join")


ENDINGS = ("affine", "activation", "maximum", "reshape", "sum", "two activations")


# Rungs, each with those that it needs before it.
RUNG_CASES: dict[str, Callable[[Analysis, Published], Sequence[Rung]]] = {
    "local": lambda analysis, published: (Largest(published), Radius(published)),
    "attack": lambda analysis, published: (Attacked(analysis),),
    "dual": lambda analysis, published: _duals(analysis, "dual"),
    "refined": lambda analysis, published: _duals(analysis, "refined"),
    "split": lambda analysis, published: _duals(analysis, "split"),
    "tube": lambda analysis, published: (TubeRadius.of(analysis, 0.5),),
    "all": ladder,
}


def _duals(analysis: Analysis, name: str) -> Sequence[Rung]:
    duals = Duals.of(analysis, 0.5)
    rungs: list[Rung] = [DualRadius(duals)]
    for eps in (eps.rounded_up for eps in analysis.options.eps):
        at = DualAt(duals, eps, analysis.pace.boxes)
        rungs.append(refined_at(duals, eps) if name == "refined" else at)
        if name == "split":
            rungs.append(SplitAt(duals, eps, 16))
    return rungs


def random_network(
    generator: Generator,
    *,
    residual: bool = True,
    in_shape: Shape = (1, 2, 5, 5),
    blocks: int = 3,
    classes: int | None = None,
    ending: str | None = None,
) -> Network:
    """A small network in float64 of any operators and activations, 3 to 5 classes.

    Without ``residual`` it is a plain chain, so that every segment has one path. ``ending``: what
    the logits come out of, drawn from ``ENDINGS`` if not given.
    """
    grower = _Grower(in_shape, generator)
    chain = [
        grower.diagonal,
        grower.activation,
        grower.convolution,
        lambda node: grower.activation(grower.convolution(node, outputs=4)),
        lambda node: grower.convolution(node, outputs=3),
    ]
    branched = [grower.residual, grower.split_and_join]
    node = 0
    for _ in range(blocks):
        node = pick(chain + 2 * branched if residual else chain, generator)(node)
    node = grower.convolution(node, outputs=4)
    node = pick([grower.max_pool, grower.activation], generator)(node)
    node = grower.activation(grower.dense(grower.flatten(node), 6))
    count = classes or pick([3, 4, 5], generator)
    if ending is None:
        ending = pick([end for end in ENDINGS if residual or end != "sum"], generator)
    return grower.builder.build(grower.end(node, count, ending))


class _Joiner(_Grower):
    """Blocks with joints, over ``(1, places, size)``."""

    def linear(self, node: int, gain: float = 1.0) -> int:
        shape = self.shape(node)
        weight = gain * normal((shape[-1], shape[-1]), self.generator) / math.sqrt(shape[-1])
        bias = 0.1 * normal(shape[-1:], self.generator)
        return self.builder.operator(Dense.of(weight, bias, shape), node, "linear")

    def normalised(self, node: int) -> int:
        shape, centred = self.shape(node), pick([True, False], self.generator)
        inverse = self.builder.joint(InverseLength(shape, 1e-3, centred, True), [node], "length")
        one = self.shape(inverse)
        if not centred:
            return self.builder.joint(Product(shape, one), [node, inverse], "norm")
        weight = torch.full((1, shape[-1]), 1 / shape[-1], dtype=torch.float64)
        mean = self.builder.operator(Dense.of(weight, None, shape), node, "mean")
        return self.builder.joint(Standardise(shape), [node, mean, inverse], "norm")

    def attention(self, node: int) -> int:
        _, rows, size = self.shape(node)
        q, k, v = (self.linear(node) for _ in range(3))
        turned = self.select(k, places((1, rows, size)).mT.contiguous(), "turned")
        scores = self.builder.joint(MatrixProduct((1,), rows, size, rows), [q, turned], "scores")
        shares = self.builder.joint(Softmax((1, rows, rows)), [scores], "shares")
        mixed = self.builder.joint(MatrixProduct((1,), rows, rows, size), [shares, v], "mixed")
        return self.builder.sum([self.linear(mixed), node], "residual")

    def gated(self, node: int) -> int:
        gate = self.builder.activation(Sigmoid(), self.linear(node), "gate")
        shape = self.shape(node)
        return self.builder.joint(Product(shape, shape), [self.linear(node), gate], "gated")

    def squeezed(self, node: int) -> int:
        """A gate of one number for each place."""
        shape = self.shape(node)
        weight = normal((1, shape[-1]), self.generator) / math.sqrt(shape[-1])
        one = self.builder.operator(Dense.of(weight, None, shape), node, "squeeze")
        gate = self.builder.activation(Sigmoid(), one, "gate")
        return self.builder.joint(Product(shape, self.shape(gate)), [node, gate], "excite")

    def written_out(self, node: int) -> int:
        """``x / √(1 + x²)``, and the square of ``x`` by itself."""
        shape = self.shape(node)
        square = self.builder.joint(Curve(shape, "power", 2.0), [node], "square")
        one = torch.ones((), dtype=torch.float64)
        more = self.builder.operator(Diagonal.of(None, one, shape), square, "more")
        root = self.builder.joint(Curve(shape, "power", 0.5), [more], "root")
        return self.builder.joint(Quotient(shape, shape), [node, root], "quotient")


def random_joint_network(generator: Generator, *, blocks: int = 2) -> Network:
    """A small network in float64 with joints, over 4 places of 6 numbers each, 3 or 4 classes."""
    grower = _Joiner((1, 4, 6), generator)
    blocks_of = [
        grower.normalised, grower.attention, grower.gated, grower.squeezed, grower.written_out,
        lambda node: grower.builder.sum([grower.activation(grower.linear(node)), node], "residual"),
    ]  # fmt: skip
    node = grower.linear(0)
    for number in range(blocks):
        kinds = blocks_of[:5] if number == 0 else blocks_of
        node = pick(kinds, generator)(node)
    flat = grower.select(node, places((1, 4, 6)).reshape(1, -1), "flatten")
    return grower.builder.build(grower.dense(flat, pick([3, 4], generator)))


def norm_coins(probability: float, batch: int = 1, *, seed: int = 0, first: int = 0) -> NormCoins:
    """Those of one norm of each of a batch of samples, from a budget that holds no more."""
    budget = Budget(seed, probability=probability * batch, samples=batch)
    account = budget.account(1.0, preparations=1, draws=1)
    allowance = budget.open(torch.arange(first, first + batch))
    return allowance.preparation(account).norm(0)
