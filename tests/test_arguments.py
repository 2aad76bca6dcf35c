"""What the library says of a wrong use names its arguments, never options of the command line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lipcert
from lipcert.arguments import spoken
from lipcert.data import load_dataset
from lipcert.errors import LipcertError, UsageError

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits.onnx"
DIGITS = load_dataset("digits")
X, Y = DIGITS.images[:6], DIGITS.labels[:6]
LOADER = DataLoader(TensorDataset(torch.tensor(X), torch.tensor(Y)), 2)


@pytest.fixture(scope="module")
def model():
    return lipcert.load(EXAMPLE)


WRONG = {
    "no eps": ((X, Y), {}, "eps: give at least one radius"),
    "negative": ((X, Y, -0.1), {}, "eps='-0.1'"),
    "nothing": ((X, Y, None), {}, "eps='None'.*36/255"),
    "no number": ((X, Y, float("nan")), {}, "eps='nan'"),
    "channels last": ((X.transpose(0, 2, 3, 1), Y, 0.1), {}, "in another order.*data_layout"),
    "bytes as floats": ((X * 255, Y, 0.1), {}, r"such as data_range=\(0, 255\)"),
    "normalised": ((X * 2 - 1, Y, 0.1), {}, r"data_range=\(-1, 1\)"),
    "no labels": ((X,), {"eps": 0.1}, "labels: give them"),
    "labels twice": ((LOADER, Y, 0.1), {}, "labels: DataLoader has its own; leave labels out"),
    "labels beyond": ((X, Y + 20, 0.1), {}, "number the labels as the model's outputs are"),
    "a method": ((X, Y, 0.1), {"method": "exact"}, "method='exact': choose one of"),
    "workers": ((X, Y, 0.1), {"workers": 0}, "workers=0: give"),
    "size": ((np.zeros((2, 1, 9, 9)), Y[:2], 0.1), {}, "give images of 8x8$"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_use_of_certify_names_the_argument(model, wrong):
    args, options, said = WRONG[wrong]
    with pytest.raises(UsageError, match=said) as error:
        lipcert.certify(model, *args, **{"method": "global"} | options)
    assert "--" not in str(error.value)


@pytest.mark.parametrize(
    ("what", "options", "said"),
    [
        (nn.Linear(2, 2).state_dict(), {}, "path: give a file or a torch.nn.Module, not Ordered"),
        (nn.Linear, {}, "not Linear"),
        (EXAMPLE, {"mean": "0.1", "std": (1,)}, r"mean '0.1': give one number a channel.*\(0.5,\)"),
        (EXAMPLE, {"channels": "BGR"}, "channels 'BGR': choose 'rgb' or 'bgr'"),
        (Path("gone.onnx"), {}, "no such file"),
        (EXAMPLE, {"output": "z"}, "no output 'z'"),
    ],
)
def test_a_wrong_use_of_load_names_the_argument(what, options, said):
    with pytest.raises(UsageError, match=said) as error:
        lipcert.load(what, **options)
    assert "--" not in str(error.value)


def test_a_model_is_loaded_first():
    with pytest.raises(UsageError, match=r"model: give what lipcert\.load returns, not str"):
        lipcert.certify(str(EXAMPLE), X, Y, 0.1)


def test_a_result_names_its_arguments(model):
    result = lipcert.certify(model, X, Y, 0.1, method="global")
    for ask, said in (
        (lambda: result.gate(min_certified=60), "min_certified='60'.*60%"),
        (lambda: result.gate(min_certified="0.2=0.6"), "min_certified: eps 0.2 is not"),
        (lambda: result.report("pdf"), "format 'pdf': choose one of html"),
        (lambda: result.audit("gone.onnx", "digits"), "digits|gone"),
    ):
        with pytest.raises(LipcertError, match=said) as error:
            ask()
        assert " --" not in str(error.value)


@pytest.mark.parametrize(
    "eps",
    [
        "0.1, 0.2",
        np.array([0.1, 0.2]),
        torch.tensor([0.1, 0.2], dtype=torch.float64),
        ("1/10", 0.2),
    ],
)
def test_radii_in_whatever_holds_them(model, eps):
    result = lipcert.certify(model, X, Y, eps, method="global")
    assert [round(float(e), 6) for e in result.summary["certified_count"] if "/" not in e][
        -1
    ] == 0.2
    assert len(result.summary["certified_count"]) == 2


def test_arrays_are_told_what_they_are(model):
    plain = lipcert.certify(model, X, Y, 0.1, method="global", seed=1)
    bytes_ = lipcert.certify(model, X * 255, Y, 0.1, method="global", seed=1, data_range=(0, 255))
    last = lipcert.certify(
        model, X.transpose(0, 2, 3, 1), Y, 0.1, method="global", seed=1, data_layout="nhwc"
    )
    radii = [sample.radius for sample in plain.samples]
    assert [sample.radius for sample in last.samples] == radii
    assert [sample.radius for sample in bytes_.samples] == pytest.approx(radii, abs=1e-4)


def test_words_stay_and_options_change():
    assert spoken("give --data-range lo,hi") == "give data_range=(lo, hi)"
    assert spoken("--range=-1,1: no") == "value_range=(-1, 1): no"
    assert spoken("choose --output-name NAME") == "choose output NAME"
    assert spoken("a -- dash, well-kept") == "a -- dash, well-kept"
