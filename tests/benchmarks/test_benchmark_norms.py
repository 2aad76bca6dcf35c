"""Masked norms at full size, against float64 eigenvalues of the dense twin.

pytest -m benchmark tests/benchmarks/test_benchmark_norms.py -s
"""

import time

import pytest
import torch
from laws import norm_coins, normal, seeded
from norms.test_norms_segments import dense_twins, random_masks, segment_of

from lipcert.network.operators import Convolution, Dense
from lipcert.norms import SegmentNorms

pytestmark = pytest.mark.benchmark

PADS = ((1, 1), (1, 1))
SHAPES = {
    "conv 3→16, 32×32, stride 2": Convolution.of(
        normal((16, 3, 4, 4), seeded(0)), None, (1, 3, 32, 32), stride=(2, 2), padding=PADS
    ),
    "conv 16→32, 16×16, stride 2": Convolution.of(
        normal((32, 16, 4, 4), seeded(1)), None, (1, 16, 16, 16), stride=(2, 2), padding=PADS
    ),
    "conv 16→16, 12×12": Convolution.of(
        normal((16, 16, 3, 3), seeded(2)), None, (1, 16, 12, 12), padding=PADS
    ),
    "dense 2048→1024": Dense.of(normal((1024, 2048), seeded(3)), None, (2048,)),
    "dense 2048→100": Dense.of(normal((100, 2048), seeded(4)), None, (2048,)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_masked_norms_at_full_size(name: str) -> None:
    batch = 4
    segment = segment_of(SHAPES[name])
    norms = SegmentNorms.of(segment, norm_coins(1e-10))
    mapping = random_masks(segment, batch, seed=5)
    begun = time.perf_counter()
    bound = norms.randomised(mapping, norm_coins(1e-13, batch, first=1000))
    seconds = (time.perf_counter() - begun) / batch
    certain = norms.deterministic(mapping)
    truth = []
    for twin in dense_twins(mapping):
        small = twin if twin.shape[0] <= twin.shape[1] else twin.mT
        truth.append(torch.linalg.eigvalsh(small @ small.mT)[-1].sqrt())
    exact = torch.stack(truth)
    excess, loose = (bound / exact - 1).median(), (certain / exact - 1).median()
    print(
        f"{name:30} median above the exact norm: randomised {excess:.2%} in {seconds * 1e3:.0f} ms "
        f"a norm, deterministic {loose:.1%}"
    )
    assert (bound >= exact * (1 - 1e-12)).all()
    assert (certain >= exact * (1 - 1e-12)).all()
    assert excess <= 0.03
