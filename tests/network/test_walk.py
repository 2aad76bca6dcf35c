"""The walk: every computation over a network is rules over its two loops."""

import ast
from collections import Counter
from pathlib import Path

import pytest
import torch
from laws import random_network, seeded, uniform
from torch import Tensor

import lipcert
from lipcert.network import (
    Backward,
    Forward,
    Network,
    NetworkBuilder,
    Node,
    ancestors,
    backward,
    fold,
    forward,
    lower,
)
from lipcert.network.activations import Activation, Elementwise, PReLU
from lipcert.network.operators import Dense, Operator


def affine(weight: list[list[float]], size: int) -> Dense:
    return Dense.of(torch.tensor(weight, dtype=torch.float64), None, (1, size))


def diamond() -> Network:
    """``x → a = 2x; a → |a| and 3a; out = |a| + 3a + 3a``: a value that three others read."""
    builder = NetworkBuilder((1, 1))
    a = builder.operator(affine([[2.0]], 1), 0)
    left = builder.activation(PReLU(torch.tensor(-1.0, dtype=torch.float64)), a)
    right = builder.operator(affine([[3.0]], 1), a)
    return builder.build(builder.sum([left, right, right]))


class Visits(Forward[Counter[int]]):
    """How often each node's value enters that of another."""

    def __init__(self) -> None:
        self.order: list[int] = []

    def input(self, i: int) -> Counter[int]:
        return Counter()

    def sum(self, i: int, parts: list[Counter[int]]) -> Counter[int]:
        return sum(parts, Counter())

    def affine(self, i: int, operator: Operator, before: Counter[int]) -> Counter[int]:
        return before

    def activation(self, i: int, activation: Activation, before: Counter[int]) -> Counter[int]:
        return before

    def found(self, i: int, node: Node, value: Counter[int]) -> Counter[int]:
        self.order.append(i)
        return value + Counter([i])


def test_forward_visits_every_node_once_in_order_and_adds_up_branches() -> None:
    network, rules = diamond(), Visits()
    found = forward(network, rules)
    assert rules.order == list(found) == list(range(5))
    assert found[network.output] == Counter({0: 3, 1: 3, 2: 1, 3: 2, 4: 1})


def test_forward_along_some_nodes_leaves_out_what_lies_elsewhere() -> None:
    network, rules = diamond(), Visits()
    found = forward(network, rules, known={1: Counter("k")}, along=(3, 4))
    assert rules.order == [3, 4]
    assert found[4] == Counter({"k": 2, 3: 2, 4: 1})


class Derivative(Backward[Tensor]):
    """The gradient of an objective, with the slopes of the activations at one point."""

    def __init__(self, network: Network, values: list[Tensor]) -> None:
        self.network, self.values, self.seen = network, values, list[int]()

    def affine(self, i: int, operator: Operator, value: Tensor) -> Tensor:
        return operator.transpose(value)

    def activation(self, i: int, activation: Activation, value: Tensor) -> Tensor:
        assert isinstance(activation, Elementwise)
        return value * activation.derivative(self.values[self.network.nodes[i].inputs[0]])

    def add(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other

    def arrived(self, i: int, value: Tensor) -> Tensor:
        self.seen.append(i)
        return value


@pytest.mark.parametrize("seed", range(6))
def test_backward_by_transposes_is_the_gradient(seed: int) -> None:
    network = lower(random_network(seeded(seed)).to(dtype=torch.float64))
    x = uniform((3, *network.in_shape), seeded(seed + 100)).requires_grad_()
    values = network.values(x)
    for node in {network.output, *network.activations[:2]}:
        objective = uniform(tuple(values[node].shape), seeded(seed + 200))
        (wanted,) = torch.autograd.grad((objective * values[node]).sum(), x, retain_graph=True)
        rules = Derivative(network, values)
        found = backward(network, node, objective, rules)
        assert found is not None
        torch.testing.assert_close(found, wanted)
        # Each ancestor once, from the last to the first.
        assert rules.seen == sorted(ancestors(network, node), reverse=True)


def test_backward_to_a_node_and_along_a_way() -> None:
    network = diamond()
    values = network.values(torch.ones(1, 1, dtype=torch.float64))
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    assert backward(network, 4, one, Derivative(network, values), to=1) == 7
    assert backward(network, 4, one, Derivative(network, values), to=1, along=(3, 4)) == 6
    assert backward(network, 4, one, Derivative(network, values), to=1, along=()) is None


def test_rules_without_a_rule_for_a_node_say_so() -> None:
    class Affine(Forward[int]):
        def sum(self, i: int, parts: list[int]) -> int:
            return sum(parts)

        def affine(self, i: int, operator: Operator, before: int) -> int:
            return before

    with pytest.raises(TypeError, match="Affine starts at no input"):
        forward(diamond(), Affine())
    with pytest.raises(TypeError, match="Affine passes no activation"):
        forward(diamond(), Affine(), known={0: 1})


def test_ancestors_leave_out_what_is_not_needed() -> None:
    assert ancestors(diamond(), 2) == (0, 1, 2)
    assert ancestors(diamond(), 4) == (0, 1, 2, 3, 4)


def test_one_rule_for_nodes_of_all_kinds_sees_what_each_of_them_reads():
    network = diamond()
    ways = fold(network, lambda i, parts: sum(parts) if parts else 1)
    assert ways == [1, 1, 1, 1, 3]
    seen = fold(network, lambda i, parts: (i, len(parts)))
    assert seen == [(i, len(node.inputs)) for i, node in enumerate(network.nodes)]


def test_no_other_loop_goes_from_nodes_to_those_that_they_read():
    """The audit shares nothing, on purpose; ``Network.readers`` only turns the arrows round."""
    package = Path(lipcert.__file__).parent
    found = set()
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package).as_posix()
        if place.startswith("audit/") or place == "network/walk.py":
            continue
        for loop in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(loop, ast.For):
                names = {getattr(n, "attr", getattr(n, "id", None)) for n in ast.walk(loop.iter)}
                read = {n.attr for part in loop.body for n in ast.walk(part)
                        if isinstance(n, ast.Attribute)}  # fmt: skip
                if "nodes" in names and "inputs" in read:
                    found.add(place)
    assert found == {"network/graph.py"}
