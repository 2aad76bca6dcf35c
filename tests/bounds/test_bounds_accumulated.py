"""What rounding does at every node: no run, in any order of its sums, is further off."""

import pytest
import torch
from attacks import in_ball
from deployed_runs import DTYPES, ORDERS, deployed_values
from laws import random_network, seeded, uniform

from lipcert.bounds import Propagation, node_constants
from lipcert.bounds.accumulated import Roundings, accumulated
from lipcert.bounds.roundoff import Roundoff
from lipcert.bounds.sensitivity import pair_rounding
from lipcert.network import Network
from lipcert.rounding import FORMATS


def over(network: Network, x: torch.Tensor, radius: float, name: str) -> tuple[Roundoff, Roundings]:
    tools = Roundoff.of(network)
    propagation = Propagation.of(network, node_constants(network, {}))
    centre, eps = propagation.centre(x), torch.full((len(x),), radius, dtype=torch.float64)
    boxes = propagation.boxes(centre, eps)
    return tools, accumulated(tools, centre, eps, boxes, FORMATS[name])


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("seed", range(3))
def test_no_run_is_further_off_than_is_charged(seed: int, name: str) -> None:
    network, generator = random_network(seeded(seed)), seeded(seed + 1)
    x = uniform((3, *network.in_shape), generator)
    tools, found = over(network, x, 0.05, name)
    eps = torch.full((3,), 0.05, dtype=torch.float64)
    labels = network.logits(x).argmax(1)
    others = (labels + 1) % network.classes
    pairs = pair_rounding(tools, found, torch.arange(3), labels, others)
    single = found.total[-1].flatten(1)
    # Two logits together err by no more than each by itself.
    both = single.gather(1, labels[:, None]) + single.gather(1, others[:, None])
    assert (pairs >= 0).all()
    assert (torch.fmin(pairs, both[:, 0]) > 0).all()
    for order in ORDERS.values():
        point = in_ball(x, eps, generator)
        run, real = deployed_values(network, point, DTYPES[name], order), network.values(point)
        for value, truth, total, (low, high) in zip(
            run, real, found.total, found.boxes, strict=True
        ):
            assert ((value - truth).abs() <= total).all()
            assert (value >= low).all()
            assert (value <= high).all()
        off = (run[-1] - real[-1]).flatten(1)
        gap = off.gather(1, labels[:, None]) - off.gather(1, others[:, None])
        assert (gap[:, 0].abs() <= pairs).all()
