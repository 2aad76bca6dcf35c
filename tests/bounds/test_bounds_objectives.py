"""Linear objectives and the variables of their duals: rows, places, and what belongs together."""

import torch
from laws import random_network, seeded, uniform

from lipcert.bounds.objectives import DualVariables, Objectives, margin_objectives


def variables(count: int, start: float = 0.0) -> DualVariables:
    values = torch.arange(count).double() + start
    slopes = {2: values[:, None].expand(-1, 3).clone(), 5: -values[:, None]}
    return DualVariables(slopes, {2: values + 10, 5: values + 20}, {5: values + 30})


def test_margins_are_what_their_objectives_say() -> None:
    network = random_network(seeded(0))
    x = uniform((3, *network.in_shape), seeded(1))
    logits = network.logits(x)
    rows, labels = torch.tensor([0, 0, 2]), torch.tensor([1, 1, 0])
    others = torch.tensor([0, 2, 1])
    found = margin_objectives(network, rows, labels, others)
    assert len(found) == 3
    values = network.values(x)[found.node][found.rows]
    margins = (values * found.coefficients).flatten(1).sum(1)
    assert torch.allclose(margins, logits[rows, labels] - logits[rows, others])
    # A class against itself is worth nothing.
    same = margin_objectives(network, rows, labels, labels)
    assert not same.coefficients.any()


def test_some_objectives_and_others_rows() -> None:
    found = Objectives(4, torch.tensor([0, 2, 2]), torch.eye(3).double())
    some = found.select(torch.tensor([2, 0]))
    assert some.rows.tolist() == [2, 0]
    assert torch.equal(some.coefficients, found.coefficients[[2, 0]])
    assert found.moved(torch.tensor([7, 8, 9])).rows.tolist() == [7, 9, 9]
    assert found.to(torch.float32).coefficients.dtype == torch.float32


def test_variables_are_taken_apart_and_put_together_in_their_order() -> None:
    one, two = variables(2), variables(3, start=5)
    joined = DualVariables.joined([one, two])
    assert joined.logs[2].tolist() == [10, 11, 15, 16, 17]
    assert joined.couplings[5].tolist() == [30, 31, 35, 36, 37]
    back = joined.select(torch.tensor([2, 3, 4]))
    assert all(torch.equal(a, b) for a, b in zip(back.numbers, two.numbers, strict=True))
    replaced = joined.replaced(torch.tensor([4, 0]), variables(2, start=90))
    assert replaced.logs[5].tolist() == [111, 21, 25, 26, 110]
    assert DualVariables.joined([]).numbers == []
    assert all(number.dtype == torch.float32 for number in joined.to(torch.float32).numbers)
