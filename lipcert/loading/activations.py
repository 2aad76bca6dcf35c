"""The activations of ONNX, Max and Min among them, and the softmax at the end."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor

from lipcert.loading.assembler import Variable, number
from lipcert.loading.value import Call, Unsupported
from lipcert.network.activations import Clip, PReLU, Sigmoid, Tanh, absolute, relu
from lipcert.network.activations.base import Activation

FLOAT32_MAX = float(np.finfo(np.float32).max)


def _elementwise(activation: Callable[[], Activation]) -> Callable[[Call], Variable]:
    return lambda call: call.assembler.activation(activation(), call.variable(0))


def _clip(call: Call) -> Variable:
    """Limits from attributes before opset 11, from inputs since; either may be left out."""
    if call.version < 11:
        lower, upper = (number(call.attributes[name]) for name in ("min", "max"))
    else:
        lower = call.constant(1, infinite=True) if call.has(1) else number(-math.inf)
        upper = call.constant(2, infinite=True) if call.has(2) else number(math.inf)
    if lower.numel() != 1 or upper.numel() != 1:
        raise Unsupported("its limits must be scalars")
    return _limited(call, call.variable(0), lower.reshape(()), upper.reshape(()))


def _limited(call: Call, x: Variable, lower: Tensor, upper: Tensor) -> Variable:
    """Limits at the end of the float range, written for none, are left out."""
    if bool(lower.isnan().any() or upper.isnan().any()):
        raise Unsupported("a limit is NaN")
    if bool((lower == math.inf).any() or (upper == -math.inf).any()):
        raise Unsupported("a limit leaves no finite value")
    low = None if bool((lower <= -FLOAT32_MAX).all()) else lower
    high = None if bool((upper >= FLOAT32_MAX).all()) else upper
    if low is None and high is None:
        return x
    return call.assembler.activation(Clip(low, high), x)


def _leaky_relu(call: Call) -> Variable:
    slope = number(call.attributes["alpha"])
    if not bool(slope.isfinite()):
        raise Unsupported("attribute alpha is not finite")
    return call.assembler.activation(PReLU(slope), call.variable(0))


def _prelu(call: Call) -> Variable:
    x, slope = call.variable(0), call.constant(1)
    if np.broadcast_shapes(x.shape, tuple(slope.shape)) != x.shape:
        raise Unsupported(f"slope {list(slope.shape)} does not broadcast to {list(x.shape)}")
    return call.assembler.activation(PReLU(slope), x)


def _hard_sigmoid(call: Call) -> Variable:
    scale, shift = number(call.attributes["alpha"]), number(call.attributes["beta"])
    line = call.assembler.diagonal(call.variable(0), scale, shift)
    return _limited(call, line, number(0.0), number(1.0))


def _extremum(largest: bool) -> Callable[[Call], Variable]:
    """Max or Min of any mix of constants and values, broadcast to one shape."""

    def rule(call: Call) -> Variable:
        values = [value for value in call.inputs if value is not None]
        shape = np.broadcast_shapes(*(value.shape for value in values))
        limits = [
            call.constant(place, infinite=True)
            for place, value in enumerate(values)
            if not isinstance(value, Variable)
        ]
        parts = [
            call.assembler.expand(value, shape) for value in values if isinstance(value, Variable)
        ]
        x = _largest(call, list(dict.fromkeys(parts)), largest)
        none = number(math.inf)
        for limit in limits:
            x = _limited(call, x, limit, none) if largest else _limited(call, x, -none, limit)
        return x

    return rule


def _largest(call: Call, parts: list[Variable], largest: bool) -> Variable:
    if len(parts) == 1:
        return parts[0]
    if len(parts) == 2:
        return call.assembler.max_and_min(parts[0], parts[1])[0 if largest else 1]
    return call.assembler.group_extremum(call.assembler.stack(parts, -1), largest)


def _softmax(call: Call) -> Variable:
    """Left out as the last operator: it keeps the order of the logits before it."""
    x = call.variable(0)
    axis = call.attributes["axis"] % len(x.shape)
    # Before opset 13 all axes from this one on are one.
    classes = x.shape[axis] if call.version >= 13 else math.prod(x.shape[axis:])
    if not call.final or classes != x.size:
        raise Unsupported("only as the last operator, over all classes")
    call.notes.append("left out: the logits before it are certified")
    return x


ACTIVATIONS: dict[str, Callable[[Call], Variable]] = {
    "Abs": _elementwise(absolute),
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "LeakyRelu": _leaky_relu,
    "LogSoftmax": _softmax,
    "Max": _extremum(largest=True),
    "Min": _extremum(largest=False),
    "PRelu": _prelu,
    "Relu": _elementwise(relu),
    "Sigmoid": _elementwise(Sigmoid),
    "Softmax": _softmax,
    "Tanh": _elementwise(Tanh),
}
