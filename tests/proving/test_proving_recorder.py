"""What proofs are sought of, and what is said where none are."""

from dataclasses import replace
from pathlib import Path

import numpy as np

import lipcert
from lipcert.data import load_dataset
from lipcert.options import Epsilon, Options
from lipcert.proving.recorder import record

MODEL = Path(__file__).resolve().parents[2] / "examples" / "digits.onnx"


def test_no_proof_is_sought_of_what_a_tube_decided():
    digits, model = load_dataset("digits"), lipcert.load(MODEL)
    result = lipcert.certify(model, digits.images[:1], digits.labels[:1], ["0.1"], effort="fast")
    deep = [replace(sample, method="tube") for sample in result.samples]
    options = Options(eps=(Epsilon.parse("0.1"),), effort="fast")
    pixels = lambda index: digits.pixels(np.asarray(index))  # noqa: E731
    given = (model.loaded.runtime_bytes, result.certificate.model)
    found = record(*given, deep, options, pixels, (1, 8, 8))
    assert found.unproven == (0,)
    assert found.arrays is not None
    assert len(found.arrays.index) == 0
    assert record(*given, result.samples, options, pixels, (1, 8, 8)).arrays is not None
