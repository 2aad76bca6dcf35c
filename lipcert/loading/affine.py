"""The layers of ONNX that are affine: convolutions, products with a matrix, normalisation with
fixed statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lipcert.loading.arithmetic import PRODUCT, combined
from lipcert.loading.assembler import Variable, number
from lipcert.loading.value import Call, Unsupported
from lipcert.loading.windows import windows
from lipcert.network.operators import Convolution, TransposedConvolution
from lipcert.rounding import HALF


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
    return combined(call, [(1.0, y), (beta, call.variable(2))])


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


AFFINE: dict[str, Callable[[Call], Variable]] = {
    "BatchNormalization": _batch_normalization,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
