"""The operators of ONNX that the auditor reads, as lines of torch, for one sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
Rule = Callable[..., Any]


class NotRead(Exception):
    """An operator, or a use of one, that this reading does not know; the message names it."""


class Attributes(dict[str, Any]):
    """A node's attributes; ``late(name, inputs, k)`` where newer versions made it input ``k``."""

    def late(self, name: str, inputs: Sequence[Any], place: int, default: Any = None) -> Any:
        if name in self:
            return self[name]
        return inputs[place] if len(inputs) > place and inputs[place] is not None else default


def run(node: onnx.NodeProto, inputs: Sequence[Any]) -> tuple[Tensor, ...]:
    """One node, of the default domain."""
    rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is None:
        raise NotRead(f"the operator {node.op_type}")
    try:
        results = rule(attributes_of(node), *inputs)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise NotRead(f"{node.op_type}: {' '.join(str(error).split())[:200]}") from error
    return results if isinstance(results, tuple) else (results,)


def attributes_of(node: onnx.NodeProto) -> Attributes:
    found = Attributes({a.name: onnx.helper.get_attribute_value(a) for a in node.attribute})
    return Attributes({k: v.decode() if isinstance(v, bytes) else v for k, v in found.items()})


def window(
    a: Attributes, x: Tensor, kernel: Sequence[int]
) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations and the pads of ``F.pad``, of a convolution or a pooling of ``x``."""
    axes = len(kernel)
    strides, dilations = a.get("strides", [1] * axes), a.get("dilations", [1] * axes)
    pads, auto = a.get("pads", [0] * 2 * axes), a.get("auto_pad", "NOTSET")
    if auto.startswith("SAME"):
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        extents = x.shape[2:]
        total = [
            max(0, (-(-n // s) - 1) * s + r - n)
            for n, s, r in zip(extents, strides, reach, strict=True)
        ]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = small + large if auto == "SAME_UPPER" else large + small
    if a.get("ceil_mode", 0):
        raise NotRead("a pooling with ceil_mode")
    pairs = [(pads[i], pads[axes + i]) for i in reversed(range(axes))]
    return list(strides), list(dilations), [pad for pair in pairs for pad in pair]


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    strides, dilations, pads = window(a, x, weight.shape[2:])
    function: Any = (F.conv1d, F.conv2d, F.conv3d)[weight.ndim - 3]
    result: Tensor = function(
        F.pad(x, pads), weight, bias, strides, 0, dilations, a.get("group", 1)
    )
    return result


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    strides, dilations, pads = window(a, x, a["kernel_shape"])
    function: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.ndim - 3]
    result: Tensor = function(
        F.pad(x, pads, value=-math.inf), a["kernel_shape"], strides, 0, dilations
    )
    return result


def _average_pool(a: Attributes, x: Tensor) -> Tensor:
    strides, dilations, pads = window(a, x, a["kernel_shape"])
    if any(d != 1 for d in dilations):
        raise NotRead("an average pooling with dilations")
    function: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.ndim - 3]
    means: Tensor = function(F.pad(x, pads), a["kernel_shape"], strides)
    if a.get("count_include_pad", 0) or not any(pads):
        return means
    ones = torch.ones(x.shape, dtype=x.dtype)
    counted: Tensor = function(F.pad(ones, pads), a["kernel_shape"], strides)
    return means / counted


def _gemm(a: Attributes, x: Tensor, y: Tensor, z: Tensor | float = 0.0) -> Tensor:
    x, y = x.T if a.get("transA") else x, y.T if a.get("transB") else y
    alpha, beta = a.get("alpha", 1.0), a.get("beta", 1.0)
    product = x @ y if alpha == 1 else alpha * (x @ y)
    return product + (z if beta == 1 else beta * z)


def _slice(a: Attributes, x: Tensor, *more: Any) -> Tensor:
    inputs = (x, *more)
    starts, ends = a.late("starts", inputs, 1), a.late("ends", inputs, 2)
    axes = a.late("axes", inputs, 3, range(len(starts)))
    steps = a.late("steps", inputs, 4, [1] * len(starts))
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places = np.arange(x.shape[int(axis)])[int(start) : int(end) : int(step)]
        x = x.index_select(int(axis), torch.from_numpy(places.copy()))
    return x


def _pad(a: Attributes, x: Tensor, *more: Any) -> Tensor:
    if a.get("mode", "constant") != "constant":
        raise NotRead(f"a pad of mode {a['mode']}")
    inputs = (x, *more)
    pads = [int(p) for p in a.late("pads", inputs, 1)]
    value = float(a.late("value", inputs, 2, 0.0))
    axes = [int(axis) % x.ndim for axis in a.late("axes", inputs, 3, range(x.ndim))]
    both = {axis: (pads[k], pads[len(axes) + k]) for k, axis in enumerate(axes)}
    listed = [both.get(axis, (0, 0)) for axis in reversed(range(x.ndim))]
    return F.pad(x, [pad for pair in listed for pad in pair], value=value)


def _reshape(a: Attributes, x: Tensor, *more: Any) -> Tensor:
    target = [int(n) for n in a.late("shape", (x, *more), 1)]
    kept = [x.shape[i] if n == 0 and not a.get("allowzero") else n for i, n in enumerate(target)]
    return x.reshape(kept)


def _flatten(a: Attributes, x: Tensor) -> Tensor:
    axis = a.get("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _squeeze(a: Attributes, x: Tensor, *more: Any) -> Tensor:
    axes = a.late("axes", (x, *more), 1)
    single = [i for i, n in enumerate(x.shape) if n == 1]
    gone = {int(axis) % x.ndim for axis in (single if axes is None else axes)}
    return x.reshape([n for i, n in enumerate(x.shape) if i not in gone])


def _unsqueeze(a: Attributes, x: Tensor, *more: Any) -> Tensor:
    axes = [int(axis) for axis in a.late("axes", (x, *more), 1)]
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _split(a: Attributes, x: Tensor, *more: Any) -> tuple[Tensor, ...]:
    axis = a.get("axis", 0)
    sizes = a.late("split", (x, *more), 1)
    if sizes is None:
        if "num_outputs" not in a:
            raise NotRead("a Split without sizes")
        return torch.split(x, -(-x.shape[axis] // a["num_outputs"]), axis)
    return torch.split(x, [int(size) for size in sizes], axis)


def _reduction(name: str) -> Rule:
    def reduce(a: Attributes, x: Tensor, *more: Any) -> Tensor:
        axes = a.late("axes", (x, *more), 1, ())
        if not len(axes):
            if a.get("noop_with_empty_axes", 0):
                return x
            axes = range(x.ndim)
        function: Any = getattr(x, name)
        result: Tensor = function([int(axis) for axis in axes], keepdim=bool(a.get("keepdims", 1)))
        return result

    return reduce


def _clip(a: Attributes, x: Tensor, *more: Any) -> Tensor:
    low, high = a.late("min", (x, *more), 1), a.late("max", (x, *more), 2)
    if low is None and high is None:
        return x
    return x.clamp(None if low is None else float(low), None if high is None else float(high))


# The floating types of ONNX, as ``arithmetic`` names them.
FLOATS = {
    onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.BFLOAT16: "bfloat16",
}  # fmt: skip


def _cast(a: Attributes, x: Tensor) -> Tensor:
    """Here values are real numbers: what the type rounds is charged, ``Interpreter.inside``."""
    if a["to"] not in FLOATS:
        raise NotRead("a Cast to a type that is not floating")
    return x


def _gather(a: Attributes, x: Tensor, indices: Array) -> Tensor:
    axis, extent = a.get("axis", 0), x.shape[a.get("axis", 0)]
    places = torch.from_numpy(np.asarray(np.asarray(indices) % extent))
    chosen = x.index_select(axis, places.reshape(-1))
    axis %= x.ndim
    return chosen.reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])


def _softmax(a: Attributes, x: Tensor) -> Tensor:
    # Before opset 13 all axes from this one on are one.
    if a.get("axis", -1) % x.ndim != x.ndim - 1:
        raise NotRead("a Softmax over another axis than the last")
    return x.softmax(-1)


def _normalised(a: Attributes, x: Tensor, axes: Sequence[int], *, centred: bool) -> Tensor:
    x = x - x.mean(list(axes), keepdim=True) if centred else x
    length: Tensor = (x.square().mean(list(axes), keepdim=True) + a.get("epsilon", 1e-5)).sqrt()
    return x / length


def _layer_norm(centred: bool) -> Rule:
    def normalise(a: Attributes, x: Tensor, scale: Tensor, bias: Any = None) -> Tensor:
        axes = range(a.get("axis", -1) % x.ndim, x.ndim)
        y = _normalised(a, x, axes, centred=centred) * scale
        return y if bias is None else y + bias

    return normalise


def _instance_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    wide = (-1, *(1,) * (x.ndim - 2))
    y = _normalised(a, x, range(2, x.ndim), centred=True)
    return y * scale.reshape(wide) + bias.reshape(wide)


# Of the operator's definition: alpha and gamma.
_SELU = 1.67326319217681884765625, 1.05070102214813232421875

RULES: dict[str, Rule] = {
    "Abs": lambda a, x: x.abs(),
    "Add": lambda a, x, y: x + y,
    "AveragePool": _average_pool,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda a, *xs: torch.cat([torch.as_tensor(x) for x in xs], a["axis"]),
    "Conv": _conv,
    "Div": lambda a, x, y: x / y,
    "Dropout": lambda a, x, *more: x,
    "Elu": lambda a, x: F.elu(x, a.get("alpha", 1.0)),
    "Erf": lambda a, x: x.erf(),
    "Exp": lambda a, x: x.exp(),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": lambda a, x: F.gelu(x, approximate=a.get("approximate", "none")),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda a, x: x.mean(list(range(2, x.ndim)), keepdim=True),
    "GlobalMaxPool": lambda a, x: x.amax(list(range(2, x.ndim)), keepdim=True),
    "HardSigmoid": lambda a, x: (a.get("alpha", 0.2) * x + a.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": lambda a, x: x * (x / 6 + 0.5).clamp(0, 1),
    "Identity": lambda a, x: x,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm(centred=True),
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "Log": lambda a, x: x.log(),
    "MatMul": lambda a, x, y: x @ y,
    "Max": lambda a, x, *more: x if not more else RULES["Max"](a, x.maximum(more[0]), *more[1:]),
    "MaxPool": _max_pool,
    "Mean": lambda a, *xs: sum(xs[1:], xs[0]) / len(xs),
    "Min": lambda a, x, *more: x if not more else RULES["Min"](a, x.minimum(more[0]), *more[1:]),
    "Mul": lambda a, x, y: x * y,
    "Neg": lambda a, x: -x,
    "PRelu": lambda a, x, slope: x.clamp(min=0) + slope * x.clamp(max=0),
    "Pad": _pad,
    "Pow": lambda a, x, y: x**y,
    "RMSNormalization": _layer_norm(centred=False),
    "Reciprocal": lambda a, x: 1 / x,
    "ReduceMax": _reduction("amax"),
    "ReduceMean": _reduction("mean"),
    "ReduceMin": _reduction("amin"),
    "ReduceSum": _reduction("sum"),
    "Relu": lambda a, x: x.relu(),
    "Reshape": _reshape,
    "Selu": lambda a, x: a.get("gamma", _SELU[1]) * F.elu(x, a.get("alpha", _SELU[0])),
    "Sigmoid": lambda a, x: x.sigmoid(),
    "Slice": _slice,
    "Softmax": _softmax,
    "Softplus": lambda a, x: F.softplus(x),
    "Split": _split,
    "Sqrt": lambda a, x: x.sqrt(),
    "Squeeze": _squeeze,
    "Sub": lambda a, x, y: x - y,
    "Sum": lambda a, *xs: sum(xs[1:], xs[0]),
    "Tanh": lambda a, x: x.tanh(),
    "Transpose": lambda a, x: x.permute(a.get("perm", list(range(x.ndim))[::-1])),
    "Unsqueeze": _unsqueeze,
}
