"""All rungs side by side on networks of every kind of activation.

LIPCERT_RUNG_IMAGES=50 pytest -m benchmark tests/benchmarks/test_benchmark_rungs.py -s
"""

import os
import time
from statistics import fmean

import numpy as np
import pytest
import torch
from shared import data_of, index, needs_models, network_of

from lipcert.certificate import Sample
from lipcert.certification import Certifier
from lipcert.options import Epsilon, Options

pytestmark = [pytest.mark.benchmark, needs_models]

IMAGES = int(os.environ.get("LIPCERT_RUNG_IMAGES", "50"))
RUNGS = [("global", "fast"), ("local", "fast"), ("auto", "fast"), ("auto", "standard")]
# network, the two radii of the table
CASES = [
    ("cifar10_resnet_2b", "2/255,8/255"),
    ("cifar10_resnet20_bn", "1/2550,1/255"),
    ("mnist_sigmoid_6x200_eran", "0.02,0.1"),
    ("mnist_convnet_maxpool", "0.02,0.1"),
    ("mnist_784_64_10_gloro", "0.3,1.0"),
]
# Steps of the radius search: 0.4 % for the duals, 0.1 % for one bound alone.
SEARCH = 1.006


@pytest.mark.parametrize(("name", "radii"), CASES)
def test_auto_is_never_below_local_or_global(name: str, radii: str) -> None:
    entry, chosen = index()[name], np.arange(IMAGES)
    data, network = data_of(entry), network_of(entry)[1]
    eps = tuple(Epsilon.parse(text) for text in radii.split(","))
    found: dict[tuple[str, str], list[Sample]] = {}
    print(f"\n{name}, {IMAGES} images")
    for method, effort in RUNGS:
        options = Options(eps, method=method, effort=effort)  # type: ignore[arg-type]
        certifier = Certifier(network, options, samples=IMAGES)
        begun, samples = time.process_time(), []
        for some in np.array_split(chosen, -(-IMAGES // 25)):
            x, y = torch.from_numpy(data.pixels(some)), torch.from_numpy(data.labels[some])
            samples += certifier(x, y, some.tolist())
        seconds = (time.process_time() - begun) / IMAGES
        correct = [sample for sample in samples if sample.correct]
        shares = [sum(e.text in s.certified for s in samples) / IMAGES for e in eps]
        print(
            f"  {method:6} {effort if method == 'auto' else '':8} certified "
            f"{' / '.join(f'{share:.0%}' for share in shares):12} mean radius "
            f"{fmean(s.radius or 0.0 for s in correct):.5f}  {seconds * 1e3:6.0f} CPU-ms a sample"
        )
        found[method, effort] = samples
    attacked = [sample.attack_radius or 0.0 for sample in correct]
    left = [sum(radius > e.rounded_up for radius in attacked) / IMAGES for e in eps]
    rungs = {kind: sum(s.method == kind for s in correct) for kind in ("local", "dual", "refined")}
    print(
        f"  clean {len(correct) / IMAGES:.0%}, attack leaves "
        f"{' / '.join(f'{share:.0%}' for share in left)}, mean attack radius "
        f"{fmean(radius for radius in attacked if radius < torch.inf):.4f}; radii of auto by rung: "
        f"{rungs}"
    )
    for rung, samples in found.items():
        if rung[0] == "auto":
            # ``fast`` takes no norms of samples' own, as ``local`` does.
            for other in ("global", "local")[: 1 if rung[1] == "fast" else 2]:
                for best, one in zip(samples, found[other, "fast"], strict=True):
                    assert (best.radius or 0.0) * SEARCH >= (one.radius or 0.0), best.index
                    assert set(one.certified) <= set(best.certified)
