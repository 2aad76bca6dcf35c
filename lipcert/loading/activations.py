"""The activations of ONNX, Max and Min among them, and the softmax at the end."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor

from lipcert.loading.assembler import Variable, number, places
from lipcert.loading.ranks import Places
from lipcert.loading.reasons import JUMPS
from lipcert.loading.value import Call, Unsupported, Value
from lipcert.network.activations import (
    Clip,
    Elu,
    Erf,
    Gelu,
    GeluTanh,
    HardSwish,
    Mish,
    PReLU,
    Sigmoid,
    Silu,
    Softplus,
    Tanh,
    absolute,
    relu,
)
from lipcert.network.activations.base import Activation

# A limit that stands for none: no network computes anything with values so large.
FAR = 1e12
# Of more values each is compared with too many others.
_MOST_SORTED = 512


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
    """A limit is left out that no finite number of the file's own type passes: one that is
    infinite, or at the end of the type's range, as written for none; and one so far out that no
    network comes near it. What could pass such a limit counts as an overflow."""
    if bool(lower.isnan().any() or upper.isnan().any()):
        raise Unsupported("a limit is NaN")
    if bool((lower == math.inf).any() or (upper == -math.inf).any()):
        raise Unsupported("a limit leaves no finite value")
    most = min(call.assembler.own.largest, FAR)
    low = None if bool((lower <= -most).all()) else lower
    high = None if bool((upper >= most).all()) else upper
    left_out = [limit.abs() for limit, kept in ((lower, low), (upper, high)) if kept is None]
    nearest = min((float(limit.amin()) for limit in left_out), default=math.inf)
    if nearest < math.inf:
        x = call.assembler.within(x, min(nearest, call.assembler.own.largest))
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


def _scaled(call: Call, inner: float, activation: Activation, outer: float) -> Variable:
    """``outer · σ(inner · x)``."""
    x, assembler = call.variable(0), call.assembler
    x = x if inner == 1 else assembler.diagonal(x, number(inner), None)
    y = assembler.activation(activation, x)
    return y if outer == 1 else assembler.diagonal(y, number(outer), None)


def _positive(call: Call, name: str) -> float:
    value = float(call.attributes[name])
    if not 0 < value < math.inf:
        raise Unsupported(f"attribute {name}={value} is not positive")
    return value


def _elu(call: Call) -> Variable:
    return _scaled(call, 1.0, Elu(_positive(call, "alpha")), 1.0)


def _celu(call: Call) -> Variable:
    """``max(0, x) + min(0, alpha (exp(x / alpha) − 1))``."""
    alpha = _positive(call, "alpha")
    return _scaled(call, 1 / alpha, Elu(), alpha)


def _selu(call: Call) -> Variable:
    return _scaled(call, 1.0, Elu(_positive(call, "alpha")), _positive(call, "gamma"))


def _swish(call: Call) -> Variable:
    """``x · sigmoid(alpha x)``."""
    alpha = float(call.attributes["alpha"])
    if not 0 < abs(alpha) < math.inf:
        raise Unsupported(f"attribute alpha={alpha}")
    return _scaled(call, alpha, Silu(), 1 / alpha)


def _gelu(call: Call) -> Variable:
    kinds: dict[str, Activation] = {"none": Gelu(), "tanh": GeluTanh()}
    kind = call.attributes["approximate"]
    if kind not in kinds:
        raise Unsupported(f"attribute approximate={kind!r}")
    return _scaled(call, 1.0, kinds[kind], 1.0)


def _shrink(call: Call) -> Variable:
    """``x`` beyond ``±lambd``, moved towards 0 by ``bias``, and 0 between."""
    limit, bias = (float(call.attributes[name]) for name in ("lambd", "bias"))
    if not 0 <= limit < math.inf or bias != limit:
        raise Unsupported(
            f"{JUMPS}: with a bias of {bias:g} and a limit of {limit:g} it jumps at the limit; a "
            "bias of the limit itself, as of Softshrink, does not"
        )
    x, assembler = call.variable(0), call.assembler
    between = assembler.activation(Clip(number(-limit), number(limit)), x)
    return assembler.sum([x, assembler.negate(between)])


def _thresholded_relu(call: Call) -> Variable:
    limit = float(call.attributes["alpha"])
    if limit != 0:
        raise Unsupported(f"{JUMPS} at its threshold {limit:g}; use ReLU, or a Clip")
    return _limited(call, call.variable(0), number(0.0), number(math.inf))


def _top_k(call: Call) -> list[Value]:
    """The largest values in order, and where they stood: all of them are GroupSort, one alone is a
    maximum."""
    x, assembler = call.variable(0), call.assembler
    count = int(call.array(1).item()) if call.has(1) else int(call.attributes["k"])
    axis = int(call.attributes["axis"])
    largest = bool(call.attributes.get("largest", 1))
    if not -len(x.shape) <= axis < len(x.shape):
        raise Unsupported(f"axis {axis} of {len(x.shape)}")
    axis %= len(x.shape)
    size = x.shape[axis]
    if not 1 <= count <= size or size > _MOST_SORTED:
        raise Unsupported(f"the {count} largest of {size}: at most of {_MOST_SORTED} are sorted")
    if count > 1 and not call.attributes.get("sorted", 1):
        raise Unsupported(f"the {count} largest of {size} in no order; only sorted ones")
    assembler.allowance.move(x.size)
    index = np.moveaxis(places(x.shape), axis, -1)
    if size == 1:
        return [x, Places.of(x, axis, x, places(x.shape))]
    if size == 2:
        pair = assembler.max_and_min(*(assembler.select(x, index[..., k]) for k in (0, 1)))
        result = assembler.stack((pair if largest else pair[::-1])[:count], -1)
    elif count > 1:
        found = assembler.sorted_group(assembler.select(x, index), largest)
        result = assembler.select(found, places(found.shape)[..., :count])
    else:
        most = assembler.group_extremum(assembler.select(x, index), largest)
        result = assembler.reshape(most, (*most.shape, 1))
    ordered = assembler.select(result, np.moveaxis(places(result.shape), -1, axis))
    return [ordered, Places.of(x, axis, ordered, places(ordered.shape))]


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


def left_out(call: Call) -> Variable:
    """The last operator, which keeps the order of the logits before it: a softmax over all classes,
    a sigmoid of each."""
    x, kind = call.variable(0), call.node.op_type
    if kind != "Sigmoid":
        axis = call.attributes["axis"] % len(x.shape)
        # Before opset 13 all axes from this one on are one.
        classes = x.shape[axis] if call.version >= 13 else math.prod(x.shape[axis:])
        if classes * call.assembler.samples != x.size:
            raise Unsupported("only as the last operator, over all classes")
    call.notes.append("left out: the logits before it are certified")
    return x


def _softmax(call: Call) -> Variable:
    raise Unsupported("only as the last operator, over all classes")


ACTIVATIONS: dict[str, Callable[[Call], Variable | list[Variable] | list[Value]]] = {
    "Abs": _elementwise(absolute),
    "Celu": _celu,
    "Clip": _clip,
    "Elu": _elu,
    "Erf": _elementwise(Erf),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _elementwise(HardSwish),
    "LeakyRelu": _leaky_relu,
    "LogSoftmax": _softmax,
    "Max": _extremum(largest=True),
    "Min": _extremum(largest=False),
    "Mish": _elementwise(Mish),
    "PRelu": _prelu,
    "Relu": _elementwise(relu),
    "Selu": _selu,
    "Sigmoid": _elementwise(Sigmoid),
    "Softmax": _softmax,
    "Shrink": _shrink,
    "Softplus": _elementwise(Softplus),
    "Swish": _swish,
    "Tanh": _elementwise(Tanh),
    "ThresholdedRelu": _thresholded_relu,
    "TopK": _top_k,
}
