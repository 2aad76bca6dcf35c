"""The published bound on a real network: how much it certifies, with what norms, how fast.

pytest -m benchmark tests/benchmarks/test_benchmark_local.py -s
"""

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from statistics import fmean

import pytest
import torch
from shared import FOLDER, MODELS, data_of, index, needs_models, network_of

from lipcert.bounds import LocalBallBound
from lipcert.certificate import Sample
from lipcert.certification import Certifier
from lipcert.certification.analysis import Analysis
from lipcert.certification.certifier import Ladder
from lipcert.certification.published import Published
from lipcert.certification.rungs import Rung, ladder
from lipcert.options import Epsilon, Options

pytestmark = [pytest.mark.benchmark, needs_models]

NAME = "cifar10_kw_small_l2_36"


def run(rungs: Ladder = ladder, **options: object) -> list[Sample]:
    """The first 100 test images at 36/255."""
    entry = index()[NAME]
    data, chosen = data_of(entry), range(100)
    network = network_of(entry)[1]
    given = Options(**({"eps": (Epsilon.parse("36/255"),), "method": "local"} | options))  # type: ignore[arg-type]
    certifier = Certifier(network, given, samples=len(chosen), rungs=rungs)
    samples = []
    for start in range(0, len(chosen), 25):
        some = list(chosen[start : start + 25])
        pixels = torch.from_numpy(data.pixels(some))  # type: ignore[arg-type]
        samples += certifier(pixels, torch.from_numpy(data.labels[some]), some)
    return samples


def figures(samples: list[Sample]) -> tuple[int, float, list[float]]:
    """Images reached, the mean radius over the correct ones, and the radii."""
    radii = [s.radius_estimate if s.radius is None else s.radius for s in samples if s.correct]
    known = [radius or 0.0 for radius in radii]
    return sum(bool(s.certified or s.estimated) for s in samples), fmean(known), known


def without_the_box(analysis: Analysis, published: Published) -> Sequence[Rung]:
    return ladder(analysis, Published.of(analysis, LocalBallBound))


def test_the_published_figures_and_what_sound_norms_keep() -> None:
    guess = figures(run(norms="estimate"))
    sound = figures(run())
    certain = figures(run(norms="deterministic"))
    whole = figures(run(method="global", norms="estimate"))
    whole_sound = figures(run(method="global"))
    ball = figures(run(without_the_box, norms="estimate"))
    rows = {
        "local, ESTIMATE": guess, "local, ESTIMATE, no box in the last layer": ball,
        "local, randomised norms": sound, "local, deterministic norms": certain,
        "global, ESTIMATE": whole, "global, sound norms": whole_sound,
    }  # fmt: skip
    print()
    for name, (reached, mean, _) in rows.items():
        print(f"{name:45} {reached:3} of 100 at 36/255, mean radius {mean:.4f}")
    print(f"sound / estimate: {sound[1] / guess[1]:.4f}")
    assert abs(guess[0] - 4) <= 1
    assert abs(guess[1] - 0.0775) <= 0.004
    assert abs(ball[1] - 0.071) <= 0.004
    assert whole[0] == whole_sound[0] == 0
    assert abs(whole[1] - 0.016) <= 0.002
    assert all(ours <= theirs for ours, theirs in zip(sound[2], guess[2], strict=True))
    assert sound[1] >= 0.95 * guess[1]


def test_a_thousand_images_in_time_and_memory() -> None:
    """One process of the command line, its time and its peak memory."""
    command = [
        sys.executable, "-m", "lipcert", "certify", str(MODELS / f"{NAME}.onnx"),
        "--data", "cifar10", "--data-dir", str(FOLDER / "data"), "--eps", "36/255",
        "--mean", "0.485,0.456,0.406", "--std", "0.225,0.225,0.225", "--limit", "1000",
        "--method", "local",
        "--json", "--quiet",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    certificate = json.loads(done.stdout)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"\n{certificate['seconds']:.0f} s, peak {peak:.2f} GiB, {certificate['summary']}")
    assert certificate["seconds"] < 180
    assert peak < 4
