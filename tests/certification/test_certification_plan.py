"""What tubes take is told from the graph, and nothing begins that an effort does not pay for."""

import re
from dataclasses import replace

import pytest
import torch
from laws import seeded, uniform
from resnets import resnet
from test_certification_tube import residual_network

from lipcert.certification import Certifier
from lipcert.certification.pace import PACES
from lipcert.certification.rungs.plan import TubePlan, is_deep
from lipcert.network import Network, NetworkBuilder
from lipcert.network.activations import relu
from lipcert.network.operators import Convolution
from lipcert.options import Epsilon, Options
from lipcert.run.cost import norms_told, samples_told, tube_told

FAST = PACES["fast"].tube


def plain_network(channels: int, side: int, layers: int) -> Network:
    """Convolutions one behind the other, of weights that nothing is computed with."""
    builder = NetworkBuilder((1, 3, side, side))
    node = 0
    for _ in range(layers):
        weight = torch.ones(channels, builder.shape(node)[1], 3, 3, dtype=torch.float64)
        operator = Convolution.of(weight, None, builder.shape(node), padding=((1, 1), (1, 1)))
        node = builder.activation(relu(), builder.operator(operator, node))
    return builder.build(node)


def options(effort: str = "fast") -> Options:
    return Options(eps=(Epsilon.parse("1e-5"),), effort=effort, seed=3)  # type: ignore[arg-type]


def test_a_small_network_has_all_tangents_and_exact_rows() -> None:
    for effort, pace in PACES.items():
        plan = TubePlan.of(plain_network(4, 12, 20), pace.tube)
        assert plan is not None, effort
        assert plan.rows.exact
        assert (plan.projections, plan.claims) == (pace.tube.projections, pace.tube.claims)


def test_plans_stay_within_the_effort_as_networks_grow() -> None:
    found = []
    for channels in (4, 16, 64, 128, 256, 512):
        plan = TubePlan.of(plain_network(channels, 32, 20), FAST)
        if plan is not None:
            assert plan.seconds <= FAST.seconds
            assert plan.memory <= FAST.memory
        found.append(plan)
    # First rows are exact, then measured by chance, then fewer, then there is no tube.
    assert found[0] is not None
    assert found[0].rows.exact
    assert found[-1] is None
    counts = [plan.projections if plan else 0 for plan in found]
    assert counts == sorted(counts, reverse=True)


def test_images_of_many_values_have_rows_measured_by_chance() -> None:
    plan = TubePlan.of(plain_network(2, 40, 20), FAST)
    assert plan is not None
    assert not plan.rows.exact


def test_what_would_take_too_long_is_told_before_it_starts() -> None:
    large = plain_network(64, 224, 20)
    assert is_deep(large)
    assert TubePlan.of(large, FAST) is None
    told = samples_told(large, options(), 1, 1)
    for word in ("deep network", " s and ", "GiB an image", "--effort fast", "choose a model"):
        assert word in told, word
    assert "\n" not in told
    # Nothing to tell of where no tube is taken.
    assert tube_told(plain_network(2, 8, 2), options()) is None
    assert tube_told(large, replace(options(), method="local")) is None


def test_a_resnet_of_large_images_says_what_it_takes_before_its_norms() -> None:
    """A small stand-in for a ResNet-50 at 224×224: told with the cost of norms, before these."""
    network = resnet(
        seeded(1), blocks=(3, 4, 6, 3), widths=(24, 48, 96, 192), side=224, bottleneck=True,
        normalised=False,
    )  # fmt: skip
    assert TubePlan.of(network, FAST) is None
    told = norms_told(network, options(), "--norms deterministic")
    assert re.search(
        r"; then the tube of this deep network takes about \d+ s .* GiB an image", told
    )
    # Only an effort that pays for it is named.
    named = re.findall(r"choose --effort (\w+)", told)
    pays = [e for e in ("standard", "max") if TubePlan.of(network, PACES[e].tube) is not None]
    assert named == pays[:1]
    nothing = resnet(
        seeded(1), blocks=(3, 4, 6, 3), widths=(64, 128, 256, 512), side=224, bottleneck=True,
        normalised=False,
    )  # fmt: skip
    assert "--effort max" not in norms_told(nothing, options("standard"), "--no-norms")


def test_columns_are_left_out_before_projections() -> None:
    """As memory grows short: first the columns of a claim are fewer, then all tangents."""
    found = []
    for share in (1.0, 0.75, 0.5, 0.35, 0.25):
        pace = PACES["standard"].tube
        scarce = replace(pace, memory=share * pace.memory)
        plan = TubePlan.of(plain_network(24, 32, 20), scarce)
        if plan is not None:
            assert plan.memory <= scarce.memory
            found.append((plan.projections, plan.rows.exact * 1, plan.rows.columns))
    assert found == sorted(found, reverse=True)
    assert len({columns for _, _, columns in found}) > 1


def test_nothing_begins_that_the_effort_does_not_pay_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = residual_network(seeded(11), 20, relu())
    assert "tube" in Certifier(network, options(), samples=1).rungs
    poor = replace(PACES["fast"], tube=replace(FAST, seconds=1e-3))
    monkeypatch.setitem(PACES, "fast", poor)
    certifier = Certifier(network, options(), samples=1)
    assert certifier.rungs == ("local", "attack")
    x = uniform((1, *network.in_shape), seeded(12)).float().double()
    sample = certifier(x, network.logits(x).argmax(1), [0])[0]
    assert sample.verdict in ("unknown", "certified")
