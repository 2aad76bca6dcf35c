"""ResNets as they are used: what they take, and that they answer within it.

pytest -m benchmark tests/benchmarks/test_benchmark_resnets.py -s
"""

import resource
import time

import pytest
import torch
from laws import seeded, uniform
from resnets import resnet

from lipcert.certification import Certifier
from lipcert.options import Epsilon, Options
from lipcert.run.cost import norms_told, tube_told

pytestmark = pytest.mark.benchmark

SECONDS, GIBIBYTES = 120, 6.0


def fast(eps: str = "1e-6") -> Options:
    return Options(eps=(Epsilon.parse(eps),), effort="fast", deployed="float32", seed=3)


def test_a_resnet18_answers() -> None:
    torch.set_num_threads(1)
    network = resnet(seeded(1))
    x = uniform((1, *network.in_shape), seeded(2)).float().double()
    labels = network.logits(x).argmax(1)
    print(f"\n{tube_told(network, fast())}")
    begun = time.process_time()
    certifier = Certifier(network, fast(), samples=1)
    print(f"setup: {time.process_time() - begun:.0f} CPU seconds; {certifier.rungs}", flush=True)
    begun = time.process_time()
    sample = certifier(x, labels, [0])[0]
    spent = time.process_time() - begun
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"radius {sample.radius:.3g}, margin {sample.margin:.3g}, attack {sample.attack_radius:.3g}"
        f"; {spent:.0f} CPU seconds, {memory:.1f} GiB, rungs {dict(sample.rungs)}"
    )
    assert "tube" in sample.rungs
    assert spent <= SECONDS
    assert memory <= GIBIBYTES


def test_a_resnet50_says_what_it_takes() -> None:
    begun = time.process_time()
    network = resnet(
        seeded(1), blocks=(3, 4, 6, 3), side=224, bottleneck=True, classes=1000, normalised=False
    )
    for effort in ("fast", "standard", "max"):
        options = Options(eps=(Epsilon.parse("1e-6"),), effort=effort)  # type: ignore[arg-type]
        print(f"\n{effort}: {norms_told(network, options, '--norms deterministic')}")
        told = tube_told(network, options)
        print(told)
        assert told is not None
        assert "GiB an image" in told
    print(f"told in {time.process_time() - begun:.0f} CPU seconds")
