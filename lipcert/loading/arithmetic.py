"""Arithmetic with constants, and sums, as ONNX broadcasts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lipcert.loading.assembler import Variable, number
from lipcert.loading.value import Call, Unsupported
from lipcert.rounding import SINGLE

PRODUCT = "a product of two values that both depend on the network's input"


def combined(call: Call, terms: Sequence[tuple[float, Variable | Tensor]]) -> Variable:
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
        return combined(call, terms)

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


ARITHMETIC: dict[str, Callable[[Call], Variable]] = {
    "Add": _linear(1.0, 1.0),
    "Div": _divide,
    "Mean": _linear(),
    "Mul": _multiply,
    "ai.onnx.ml.Scaler": _scaler,
    "Neg": _linear(-1.0),
    "Sub": _linear(1.0, -1.0),
    "Sum": _linear(1.0),
}
