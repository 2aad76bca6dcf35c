"""The affine operators of ONNX: layers, normalisation with fixed statistics, arithmetic."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipcert.loading.assembler import Variable, number
from lipcert.loading.value import Call, Unsupported
from lipcert.loading.windows import windows
from lipcert.network.operators import Convolution, TransposedConvolution
from lipcert.rounding import HALF, SINGLE

PRODUCT = "a product of two values that both depend on the network's input"


def _conv(call: Call) -> Variable:
    x, weight = call.variable(0), call.constant(1)
    kernel = tuple(weight.shape[2:])
    if tuple(call.attributes.get("kernel_shape", kernel)) != kernel:
        raise Unsupported(f"attribute kernel_shape contradicts weight {list(weight.shape)}")
    over = windows(call.attributes, x.shape[2:], kernel)
    return call.assembler.operator(
        Convolution.of(
            weight,
            call.optional(2),
            x.shape,
            stride=over.stride,
            padding=over.padding,
            dilation=over.dilation,
            groups=call.attributes["group"],
        ),
        x,
    )


def _conv_transpose(call: Call) -> Variable:
    """The transpose of a convolution; its pads crop."""
    x, weight, attributes = call.variable(0), call.constant(1), call.attributes
    kernel, dims = tuple(weight.shape[2:]), len(x.shape) - 2
    if tuple(attributes.get("kernel_shape", kernel)) != kernel:
        raise Unsupported(f"attribute kernel_shape contradicts weight {list(weight.shape)}")
    stride = tuple(attributes.get("strides", (1,) * dims))
    dilation = tuple(attributes.get("dilations", (1,) * dims))
    more = tuple(attributes.get("output_padding", (0,) * dims))
    pads = tuple(attributes.get("pads", (0,) * 2 * dims))
    lengths = {len(kernel), len(stride), len(dilation), len(more), len(pads) / 2, dims}
    if len(lengths) != 1 or not dims or min(*stride, *dilation, *kernel) < 1:
        raise Unsupported(f"kernel, strides, dilations or pads do not fit {dims} spatial axes")
    pads = _deduced(attributes, x.shape[2:], kernel, stride, dilation, more) or pads
    if min(*pads, *more) < 0:
        raise Unsupported(f"negative pads {list(pads)} or output_padding {list(more)}")
    space = tuple(
        step * (size - 1) + extra + (width - 1) * gap + 1 - before - after
        for size, step, extra, width, gap, before, after in zip(
            x.shape[2:], stride, more, kernel, dilation, pads[:dims], pads[dims:], strict=True
        )
    )
    if min(space) < 1:
        raise Unsupported(f"an empty result {list(space)}")
    return call.assembler.operator(
        TransposedConvolution.of(
            weight, call.optional(2), x.shape, space, stride=stride, dilation=dilation,
            padding=tuple(zip(pads[:dims], pads[dims:], strict=True)), groups=attributes["group"],
        ),
        x,
    )  # fmt: skip


def _deduced(
    attributes: Mapping[str, Any], space: Sequence[int], kernel: Sequence[int],
    stride: Sequence[int], dilation: Sequence[int], more: Sequence[int],
) -> tuple[int, ...] | None:  # fmt: skip
    """Pads of a transposed convolution that follow from the extents of its result: those that it
    names, or the strides times those of its input; None where it has pads of its own. An odd one
    goes before for SAME_LOWER and after for SAME_UPPER."""
    auto, given = attributes.get("auto_pad", "NOTSET"), attributes.get("output_shape")
    if auto == "VALID" and not given:
        return (0,) * 2 * len(kernel)
    if auto == "NOTSET" and not given:
        return None
    named = [int(n) for n in given or ()][-len(kernel) :]
    wanted = named or [n * step for n, step in zip(space, stride, strict=True)]
    total = [
        max(0, step * (size - 1) + extra + (width - 1) * gap + 1 - want)
        for size, step, extra, width, gap, want in zip(
            space, stride, more, kernel, dilation, wanted, strict=True
        )
    ]
    less = [n // 2 for n in total]
    rest = [n - n // 2 for n in total]
    return (*less, *rest) if auto == "SAME_UPPER" else (*rest, *less)


def _einsum(call: Call) -> Variable:
    """A value and a constant, multiplied and summed along some of their axes: a matrix along the
    last axis, or one for each of the axes that all have, as a convolution in groups. A value alone
    is summed with ones."""
    if sum(isinstance(value, Variable) for value in call.inputs) > 1:
        raise Unsupported(PRODUCT)
    slot = 0 if isinstance(call.inputs[0], Variable) else 1
    x = call.variable(slot)
    parts, result = _equation(call)
    own = parts[slot]
    if len(parts) == 1 and len(own) == len(x.shape) and sorted(own) == sorted(set(result)):
        return call.assembler.transpose(x, [own.index(a) for a in result])
    if len(parts) == 2:
        other, weight = parts[1 - slot], call.constant(1 - slot)
    else:
        other = "".join(a for a in own if a not in result)
        summed_over = [n for a, n in zip(own, x.shape, strict=False) if a in other]
        call.assembler.allowance.keep(math.prod(summed_over))
        weight = torch.ones(summed_over, dtype=torch.float64)
    once = all(len(set(labels)) == len(labels) for labels in (own, other, result))
    fits = len(own) == len(x.shape) and len(other) == weight.dim()
    extents = dict(zip(own, x.shape, strict=False))
    same = all(extents.setdefault(a, n) == n for a, n in zip(other, weight.shape, strict=False))
    unknown = set(result) - set(own) - set(other)
    alone = (set(own) ^ set(other)) - set(result)
    if not (once and fits and same) or unknown or alone:
        raise Unsupported(f"equation {call.attributes['equation']!r} for these shapes")
    groups = [a for a in own if a in other and a in result]
    summed = [a for a in own if a in other and a not in result]
    kept = [a for a in own if a not in other]
    fresh = [a for a in other if a not in own]
    g, s, k, f = (math.prod(extents[a] for a in axes) for axes in (groups, summed, kept, fresh))
    assembler = call.assembler
    matrix = weight.permute([other.index(a) for a in (*groups, *fresh, *summed)])
    if not groups:
        x = assembler.transpose(x, [own.index(a) for a in (*kept, *summed)])
        y = assembler.dense(assembler.reshape(x, (k, s)), matrix.reshape(f, s))
        order = [*kept, *fresh]
    else:
        x = assembler.transpose(x, [own.index(a) for a in (*groups, *summed, *kept)])
        layer = Convolution.of(matrix.reshape(g * f, s, 1), None, (1, g * s, k), groups=g)
        y = assembler.operator(layer, assembler.reshape(x, (1, g * s, k)))
        order = [*groups, *fresh, *kept]
    y = assembler.reshape(y, [extents[a] for a in order])
    return assembler.transpose(y, [order.index(a) for a in result])


def _equation(call: Call) -> tuple[list[str], str]:
    """A letter for each axis of the inputs and of the result, also where the equation leaves the
    result out or has dots for some axes."""
    told = call.attributes["equation"]
    terms, arrow, result = told.replace(" ", "").partition("->")
    parts, shapes = terms.split(","), [value.shape for value in call.inputs if value is not None]
    spare = [a for a in string.ascii_letters if a not in terms]
    if len(parts) != len(shapes) or len(parts) > 2:
        raise Unsupported(f"equation {told!r} of {len(shapes)} inputs")
    dots = [len(s) - len(p.replace("...", "")) if "..." in p else 0
            for p, s in zip(parts, shapes, strict=True)]  # fmt: skip
    if min(dots) < 0 or max(dots) > len(spare):
        raise Unsupported(f"equation {told!r} for these shapes")
    letters = "".join(spare[: max(dots)])
    if not arrow:
        once = (a for a in sorted(set(terms) - set(".,")) if terms.count(a) == 1)
        result = "..." + "".join(once)
    parts = [
        p.replace("...", letters[len(letters) - n :]) for p, n in zip(parts, dots, strict=True)
    ]
    result = result.replace("...", letters)
    if not all(set(text) <= set(string.ascii_letters) for text in (*parts, result)):
        raise Unsupported(f"equation {told!r}")
    return parts, result


def _batch_normalization(call: Call) -> Variable:
    """Centre, then scale: two operators, because the subtraction may cancel."""
    training = call.attributes.get("training_mode") or any(list(call.node.output)[1:])
    if training or call.attributes.get("spatial", 1) != 1:
        raise Unsupported("only evaluation mode per channel; export the model with eval()")
    if call.assembler.own == HALF:
        raise Unsupported(
            "in 16 bits, where its scale is not known; export the model with it folded into the "
            "layer before it"
        )
    x = call.variable(0)
    gamma, beta, mean, variance = (call.constant(k) for k in range(1, 5))
    deviation = torch.sqrt(variance + call.attributes["epsilon"])
    scale = gamma / deviation
    if not bool(scale.isfinite().all()):
        raise Unsupported("a running variance is negative, or zero without epsilon")
    spread = (-1, *(1,) * (len(x.shape) - 2))
    centred = call.assembler.diagonal(x, None, -mean.reshape(spread))
    return call.assembler.diagonal(centred, scale.reshape(spread), beta.reshape(spread))


def _gemm(call: Call) -> Variable:
    assembler, attributes = call.assembler, call.attributes
    alpha, beta = float(attributes["alpha"]), float(attributes["beta"])
    if isinstance(call.inputs[0], Variable) and isinstance(call.inputs[1], Variable):
        raise Unsupported(PRODUCT)
    if isinstance(call.inputs[0], Variable):
        x, weight = call.variable(0), call.constant(1)
        x = assembler.transpose(x, (1, 0)) if attributes["transA"] else x
        weight = weight if attributes["transB"] else weight.T
        y = assembler.dense(x, weight)
    else:
        x, weight = call.variable(1), call.constant(0)
        x = x if attributes["transB"] else assembler.transpose(x, (1, 0))
        weight = weight.T if attributes["transA"] else weight
        y = assembler.transpose(assembler.dense(x, weight), (1, 0))
    # Its sums are multiplied when they are done, or the weights beforehand.
    y = y if alpha == 1 else assembler.diagonal(y, number(alpha), None)
    if not call.has(2):
        return y
    if np.broadcast_shapes(y.shape, call.inputs[2].shape) != y.shape:  # type: ignore[union-attr]
        raise Unsupported("its input C does not broadcast to the result")
    if not isinstance(call.inputs[2], Variable):
        return assembler.diagonal(y, None, beta * call.constant(2))
    return _combine(call, [(1.0, y), (beta, call.variable(2))])


def _matmul(call: Call) -> Variable:
    """A constant matrix on one side; leading axes of 1 in it only lengthen the shape."""
    left, right = call.inputs[:2]
    if isinstance(left, Variable) and isinstance(right, Variable):
        raise Unsupported(PRODUCT)
    on_left = isinstance(right, Variable)
    x = call.variable(1 if on_left else 0)
    constant = call.constant(0 if on_left else 1)
    if any(extent != 1 for extent in constant.shape[:-2]):
        raise Unsupported(f"a batch of constant matrices {list(constant.shape)}")
    vector = constant.dim() == 1
    weight = constant.reshape(1, -1) if vector else constant.reshape(constant.shape[-2:])
    assembler = call.assembler
    lead = (1,) * max(0, constant.dim() - max(2, len(x.shape)))
    if not on_left:
        y = assembler.dense(x, weight if vector else weight.T)
        rows = x.shape[-2:-1] if len(x.shape) > 1 else ()
        outer = (*lead, *x.shape[:-2])
        return assembler.reshape(y, (*outer, *rows, *(() if vector else weight.shape[1:])))
    if len(x.shape) == 1:
        y = assembler.dense(x, weight)
        return assembler.reshape(y, (*constant.shape[:-2], *(() if vector else weight.shape[:1])))
    swap = (*range(len(x.shape) - 2), len(x.shape) - 1, len(x.shape) - 2)
    y = assembler.transpose(assembler.dense(assembler.transpose(x, swap), weight), swap)
    rows = () if vector else weight.shape[:1]
    return assembler.reshape(y, (*lead, *x.shape[:-2], *rows, x.shape[-1]))


def _combine(call: Call, terms: Sequence[tuple[float, Variable | Tensor]]) -> Variable:
    """``Σ factor · term``, broadcast as ONNX does; at least one term depends on the input."""
    shape = np.broadcast_shapes(*(tuple(value.shape) for _, value in terms))
    factors: dict[Variable, float] = {}
    biases: list[Tensor] = []
    for factor, value in terms:
        if isinstance(value, Variable):
            x = call.assembler.expand(value, shape)
            factors[x] = factors.get(x, 0.0) + factor
        else:
            biases.append(factor * value)
    scales = {x: None if f == 1 else number(f) for x, f in factors.items()}
    parts = [call.assembler.diagonal(x, scale, None) for x, scale in scales.items()]
    total = parts[0] if len(parts) == 1 else call.assembler.sum(parts)
    for bias in biases:
        # One at a time: constants may cancel each other, but not what they round.
        total = call.assembler.diagonal(total, None, bias)
    return total


def _linear(*factors: float) -> Callable[[Call], Variable]:
    """The rule of ``Σ factor · input``; no factors: the mean of the inputs."""

    def rule(call: Call) -> Variable:
        count = len(call.inputs)
        weights = factors * count if len(factors) == 1 else factors or (1 / count,) * count
        terms: list[tuple[float, Variable | Tensor]] = [
            (weight, value if isinstance(value, Variable) else call.constant(place))
            for place, (weight, value) in enumerate(zip(weights, call.inputs, strict=True))
        ]
        return _combine(call, terms)

    return rule


def _multiply(call: Call) -> Variable:
    left, right = call.inputs
    if isinstance(left, Variable) and isinstance(right, Variable):
        raise Unsupported(PRODUCT)
    slot = 0 if isinstance(left, Variable) else 1
    return _scale(call, call.variable(slot), call.constant(1 - slot))


def _divide(call: Call) -> Variable:
    if isinstance(call.inputs[1], Variable):
        raise Unsupported("a division by a value that depends on the network's input")
    divisor = call.constant(1)
    if bool((divisor == 0).any()):
        raise Unsupported("a division by zero")
    return _scale(call, call.variable(0), 1 / divisor)


def _scaler(call: Call) -> Variable:
    """scikit-learn's, of the domain ai.onnx.ml: ``(x − offset) scale`` along the last axis."""
    x, (offset, scale) = call.variable(0), (
        torch.tensor(list(call.attributes.get(name, [])), dtype=torch.float64)
        for name in ("offset", "scale")
    )  # fmt: skip
    if call.assembler.own != SINGLE:
        raise Unsupported("only of float32 values")
    if not all(part.numel() in (1, x.shape[-1]) for part in (offset, scale)):
        raise Unsupported(f"offset or scale does not fit {list(x.shape)}")
    centred = call.assembler.diagonal(x, None, -offset)
    return call.assembler.diagonal(centred, scale, None)


def _scale(call: Call, x: Variable, scale: Tensor) -> Variable:
    x = call.assembler.expand(x, np.broadcast_shapes(x.shape, tuple(scale.shape)))
    return call.assembler.diagonal(x, scale, None)


AFFINE: dict[str, Callable[[Call], Variable]] = {
    "Add": _linear(1.0, 1.0),
    "BatchNormalization": _batch_normalization,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _divide,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Mean": _linear(),
    "Mul": _multiply,
    "ai.onnx.ml.Scaler": _scaler,
    "Neg": _linear(-1.0),
    "Sub": _linear(1.0, -1.0),
    "Sum": _linear(1.0),
}
