"""Pixels to inputs, against the same pipeline in plain numpy."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from load_models import Case, network

from lipcert.errors import UsageError
from lipcert.loading import normalisation_found, with_preprocessing
from lipcert.network import Network

IMAGE = (3, 4, 5)
MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]


def taking(*shape: int) -> Network:
    """A network that hands its input through ReLU."""
    return network(Case("relu", [("Relu", "x", "y", {})], (1, *shape)).model())


def seen(net: Network, pixels: Any) -> Any:
    """What reaches the network's first own node."""
    return net.values(torch.from_numpy(pixels))[-2].numpy()


def pixels() -> Any:
    return np.random.default_rng(0).random((6, *IMAGE))


@pytest.mark.parametrize(
    ("shape", "layout", "order"),
    [
        ((3, 4, 5), None, "CHW"),
        ((4, 5, 3), None, "HWC"),
        ((60,), None, "CHW"),
        ((60, 1), None, "CHW"),
        ((60,), "CHW", "CHW"),
        ((60,), "HWC", "HWC"),
        ((60,), "CWH", "CWH"),
        ((5, 4, 3), "WHC", "WHC"),
        ((3, 5, 4), "CWH", "CWH"),
        ((1, 4, 5, 3), "HWC", "HWC"),
    ],
)
def test_layouts(shape: tuple[int, ...], layout: str | None, order: str) -> None:
    net = with_preprocessing(taking(*shape), image_shape=IMAGE, layout=layout)
    assert net.in_shape == (1, *IMAGE)
    x = pixels()
    expected = x.transpose(0, *(1 + "CHW".index(axis) for axis in order)).reshape(6, 1, *shape)
    np.testing.assert_array_equal(seen(net, x), expected)


def test_statistics_are_per_channel_whatever_the_layout() -> None:
    net = with_preprocessing(
        taking(4, 5, 3), image_shape=IMAGE, mean=MEAN, std=STD, value_range=(-1, 3)
    )
    x = pixels()
    expected = ((-1 + 4 * x.transpose(0, 2, 3, 1)) - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(seen(net, x), expected[:, None], rtol=1e-14)


def test_one_number_serves_all_channels() -> None:
    net = with_preprocessing(taking(*IMAGE), image_shape=IMAGE, mean=[0.5], std=[0.25])
    x = pixels()
    np.testing.assert_allclose(seen(net, x), (x[:, None] - 0.5) / 0.25, rtol=1e-14)


def test_features_without_an_image() -> None:
    net = with_preprocessing(taking(4), image_shape=(4,), mean=[1, 2, 3, 4], std=[2])
    x = np.ones((2, 4))
    np.testing.assert_allclose(seen(net, x), [[[0, -0.5, -1, -1.5]]] * 2)


def test_nothing_asked_for_adds_nothing() -> None:
    net = taking(*IMAGE)
    assert len(with_preprocessing(net, image_shape=IMAGE).nodes) == len(net.nodes)


@pytest.mark.parametrize(
    ("shape", "options", "reason"),
    [
        ((61,), {}, r"\[3, 4, 5\] have 60 values, the network's input \[1, 61\] has 61"),
        (IMAGE, {"mean": [0.1, 0.2]}, "give one finite number, or 3, one each"),
        (IMAGE, {"mean": [float("nan")]}, "give one finite number, or 3, one each"),
        (IMAGE, {"std": [0.1, 0.2, 0.0]}, "every number must be above 0"),
        (IMAGE, {"std": [-1.0]}, "every number must be above 0"),
        (IMAGE, {"layout": "NHWC"}, "give an order of all the letters C, H and W"),
        (IMAGE, {"layout": "HWC"}, "does not fit the network's input"),
        (IMAGE, {"value_range": (1, 1)}, "--range 1,1: give two finite numbers"),
    ],
)
def test_what_does_not_fit_is_told(
    shape: tuple[int, ...], options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        with_preprocessing(taking(*shape), image_shape=IMAGE, **options)


def test_a_layout_of_features_is_refused() -> None:
    with pytest.raises(UsageError, match="all the letters C, H and W"):
        with_preprocessing(taking(4), image_shape=(4,), layout="CHW")


NORMALISED: dict[str, Any] = {
    "sub": ([("Sub", "x c", "z", {})], "a shift by -0.5"),
    "div": ([("Div", "x c", "z", {})], "a scale of 2"),
    "flat": ([("Flatten", "x", "f", {}), ("Sub", "f c", "z", {})], "a shift by -0.5"),
    "both": ([("Sub", "x c", "s", {}), ("Div", "s c", "z", {})], "a shift by .* and a scale of 2"),
    "bn": ([("BatchNormalization", "x g g g g", "z", {})], "a shift by .* and a scale of"),
}


@pytest.mark.parametrize("name", NORMALISED)
def test_what_a_network_does_to_its_input_comes_after_the_statistics(name: str) -> None:
    nodes, told = NORMALISED[name]
    constants = {"c": np.array(0.5), "g": np.full(3, 0.5)}
    net = network(Case(name, [*nodes, ("Relu", "z", "y", {})], (1, *IMAGE), 17, constants).model())
    found = normalisation_found(net)
    assert found is not None
    assert re.search(told, found)
    x = torch.rand(3, *IMAGE, dtype=torch.float64)
    both = with_preprocessing(net, image_shape=IMAGE, mean=[0.3], std=[0.4])
    expected = net.logits(((x - 0.3) / 0.4)[:, None])
    torch.testing.assert_close(both.logits(x), expected)


def test_what_comes_after_the_first_layer_is_no_normalisation() -> None:
    nodes = [("Relu", "x", "r", {}), ("Sub", "r c", "y", {})]
    net = network(Case("late", nodes, (1, 5), 17, {"c": np.array(0.5)}).model())
    assert normalisation_found(net) is None
    trivial = [("Add", "x c", "z", {}), ("Relu", "z", "y", {})]
    nothing = network(Case("zero", trivial, (1, 5), 17, {"c": np.array(0.0)}).model())
    assert normalisation_found(nothing) is None
