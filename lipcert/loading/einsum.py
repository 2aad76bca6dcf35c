"""Einstein sums of a value and a constant."""

from __future__ import annotations

import math
import string
from collections.abc import Callable

import torch

from lipcert.loading.arithmetic import PRODUCT
from lipcert.loading.assembler import Variable
from lipcert.loading.value import Call, Unsupported
from lipcert.network.operators import Convolution


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


EINSUM: dict[str, Callable[[Call], Variable]] = {"Einsum": _einsum}
