"""Certification on a device beside the CPU: nothing is mixed, and every number is the CPU's."""

from pathlib import Path

import pytest
import torch
from pretend import Mixed, Pretend
from test_certification_tube import by_tube

from lipcert.certification import Certifier
from lipcert.certification.rungs.tube import TubeRadius
from lipcert.data import load_dataset
from lipcert.loading import DeployedFile
from lipcert.network.operators.convolve import windows_everywhere
from lipcert.options import Epsilon, Options
from lipcert.run import ModelSource, Preprocessing, open_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits.onnx"
DIGITS = load_dataset("digits")
EPS = (Epsilon.parse("0.3"), Epsilon.parse("0.7"))
# Misclassified, left open, falsified.
CHOSEN = [1, 2, 10]


def certified(device: str, options: Options) -> list[dict]:
    model = open_model(ModelSource(EXAMPLE), Preprocessing())
    network = model.on_images((1, 8, 8))
    points: dict = {}
    certifier = Certifier(
        network, options, samples=len(CHOSEN), device=device, key=7, counterexamples=points,
        file=DeployedFile(model.loaded, network),
    )  # fmt: skip
    pixels, labels = (
        torch.from_numpy(DIGITS.pixels(CHOSEN)),
        torch.from_numpy(DIGITS.labels[CHOSEN]),
    )
    records = [sample.to_json() for sample in certifier(pixels, labels, CHOSEN)]
    norms = [norm.value for norm in certifier.layer_norms]
    found = [{k: v for k, v in r.items() if k not in ("seconds", "rungs")} for r in records]
    return [*found, {"norms": norms, "points": {i: p.tolist() for i, p in points.items()}}]


@pytest.mark.parametrize(
    "options",
    [
        Options(EPS, method="global"),
        Options(EPS, method="local"),
        Options(EPS, method="local", norms="deterministic", dtype="float32"),
        Options(EPS, method="local", norms="estimate"),
        Options(EPS, effort="fast"),
        Options(EPS[:1], effort="standard", pixel_domain=True),
        Options(EPS[:1], effort="standard", dtype="float32", deployed="float16"),
        Options(EPS[:1], effort="max"),
    ],
    ids=lambda o: f"{o.method}-{o.effort}-{o.norms}-{o.dtype}",
)
def test_every_method_gives_on_a_device_what_it_gives_on_the_cpu(options):
    with Pretend() as device:
        found = certified(device.name, options)
    assert device.launches.total() > 1000
    with windows_everywhere():
        assert found == certified("cpu", options)


def test_a_tube_follows_samples_side_by_side_on_a_device():
    """On a CPU one after the other. Cauchy numbers are tangents, which a GPU rounds otherwise."""
    with Pretend() as device:
        by_tube(TubeRadius, 1, "fast", device.name)
        alone = device.launches.total()
        device.reset()
        found = by_tube(TubeRadius, 3, "fast", device.name)
        assert device.launches.total() < 1.6 * alone
    with windows_everywhere():
        expected = by_tube(TubeRadius, 3, "fast")
    for one, other in zip(found, expected, strict=True):
        assert (one["radius"], one["verdict"]) == (other["radius"], other["verdict"])
        assert one["deployed_error"] == pytest.approx(other["deployed_error"], rel=1e-9)
        assert one["failure_probability"] == other["failure_probability"]


def test_what_a_gpu_refuses_is_refused():
    with Pretend() as device:
        there, here = torch.ones(3, device=device.name), torch.ones(3)
        assert (there + 1).cpu().tolist() == [2, 2, 2]
        assert (there * torch.tensor(2.0)).sum().item() == 6
        for mixed in (lambda: there + here, lambda: there @ here, lambda: here.add_(there)):
            with pytest.raises(Mixed, match="a tensor of the CPU"):
                mixed()
        with pytest.raises(TypeError, match="to numpy"):
            there.numpy()
        waited = device.waits.total()
        there.nonzero()
        assert there[there > 0].cpu().tolist() == [1, 1, 1]
        assert device.waits.total() == waited + 3
