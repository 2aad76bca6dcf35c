"""Every pretrained model loads, passes the cross-check and has its published clean accuracy.

pytest -m benchmark tests/benchmarks/test_benchmark_models.py -s
"""

import numpy as np
import pytest
from shared import MODELS, data_of, index, needs_models, network_of

from lipcert.errors import CannotCertify
from lipcert.loading import cross_check, load_model
from lipcert.run.checks import predictions, spread

pytestmark = [pytest.mark.benchmark, needs_models]

REFUSED = "cifar10_vit_pgd_2_3_16"


@pytest.mark.parametrize("name", [name for name in index() if name != REFUSED])
def test_the_clean_accuracy_is_the_published_one(name: str) -> None:
    entry = index()[name]
    loaded, network = network_of(entry)
    data = data_of(entry)
    everything = np.arange(len(data))
    check = cross_check(loaded, network, data.pixels(spread(everything, 200)))
    predicted = predictions(network, data, everything, device="cpu", batch=250)
    right = int((predicted == data.labels).sum())
    published = entry.get("accuracy_pct_full_10k")
    print(
        f"{name:28} {right:5} of {len(data)}, published {published} %, cross-check "
        f"{check.max_relative_difference:.1e}, onnx2torch {check.onnx2torch}"
    )
    if published is not None:
        assert abs(right - published * len(data) / 100) <= 2


def test_what_is_not_supported_is_listed_in_full() -> None:
    with pytest.raises(CannotCertify) as refused:
        load_model(MODELS / f"{REFUSED}.onnx")
    message = str(refused.value)
    assert message.count("Softmax") >= 2
    assert message.count("MatMul") >= 4
