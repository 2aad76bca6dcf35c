"""Runs of a network as hardware may run it: rounded to a format, the sums in a hostile order."""

from collections.abc import Callable, Collection

import torch
from laws import dense_twin
from torch import Tensor

from lipcert.network import Input, Network, Sum
from lipcert.network.joints import Joint
from lipcert.network.operators import Diagonal, Operator, Select

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}

Order = Callable[[Tensor], Tensor]


def _shuffled(terms: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(terms.shape[-1])
    return terms[..., torch.randperm(terms.shape[-1], generator=generator)]


# How the terms ``(…, n)`` of a sum are lined up before they are added from left to right.
ORDERS: dict[str, Order] = {
    "as they are": lambda terms: terms,
    "shuffled": _shuffled,
    "positive first": lambda terms: terms.sort(-1, descending=True).values,
    "largest first": lambda terms: terms.gather(-1, terms.abs().argsort(-1, descending=True)),
    "smallest first": lambda terms: terms.gather(-1, terms.abs().argsort(-1)),
}


def deployed_logits(network: Network, x: Tensor, dtype: torch.dtype, order: Order) -> Tensor:
    """Logits in float64 of a run in ``dtype``."""
    return deployed_values(network, x, dtype, order)[-1].flatten(1)


def deployed_values(
    network: Network,
    x: Tensor,
    dtype: torch.dtype,
    order: Order,
    exact: Collection[int] = (),
) -> list[Tensor]:
    """Every node's value in float64 in a run in ``dtype``: constants, input and every result
    rounded to it; sums of products of 16 bits are accumulated in float32. The nodes of ``exact``
    round nothing."""
    sums = torch.float32 if dtype.itemsize == 2 else dtype

    def rounded(value: Tensor) -> Tensor:
        return value.to(dtype).to(torch.float64)

    def added(terms: Tensor, kept: torch.dtype) -> Tensor:
        total = torch.zeros_like(terms[..., 0])
        for term in order(terms).unbind(-1):
            total = (total + term).to(kept).to(torch.float64)
        return rounded(total)

    values: list[Tensor] = []
    for i, node in enumerate(network.nodes):
        parts = [values[j] for j in node.inputs]
        match node.kind:
            case Operator() as operator if i in exact:
                value = operator.forward(parts[0])
            case Joint() as joint:
                value = joint.value(*(part.to(dtype) for part in parts)).to(torch.float64)
            case activation if i in exact:
                value = activation.value(parts[0])
            case Input():
                value = rounded(x.reshape(-1, *node.shape))
            case Sum():
                value = added(torch.stack(parts, -1), dtype)
            case Select() as select:
                value = select.apply(parts[0])
            case Diagonal() as diagonal:
                value = parts[0]
                if diagonal.scale is not None:
                    value = rounded(value * rounded(diagonal.scale))
                if diagonal.bias is not None:
                    value = rounded(value + rounded(diagonal.bias))
            case Operator() as operator:
                matrix = rounded(dense_twin(operator))
                terms = (parts[0].flatten(1)[:, None] * matrix).to(sums).to(torch.float64)
                if operator.bias is not None:
                    bias = rounded(operator.bias).expand(operator.out_shape).reshape(-1, 1)
                    terms = torch.cat([bias.expand(len(terms), -1, -1), terms], -1)
                value = added(terms, sums).reshape(-1, *node.shape)
            case activation:
                held = activation.convert(lambda t: rounded(t))
                value = rounded(held.value(parts[0]))
        values.append(value)
    return values
