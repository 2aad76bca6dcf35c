"""The peak of memory for each number that a backward pass goes by: what ``lipcert.chunks`` counts
on when it fits chunks into a device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.shared import needs_models

from lipcert.chunks import BYTES

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import json, re, sys
from pathlib import Path
import torch
from benchmarks.shared import data_of, index, network_of
from lipcert.certification.analysis import Analysis
from lipcert.certification.duals import Duals
from lipcert.certification.samples import Samples
from lipcert.bounds.state import select, to_dtype
from lipcert.norms import Budget
from lipcert.options import Epsilon, Options

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

kind, many = sys.argv[1], int(sys.argv[2])
entry = index()["cifar10_kw_small_l2_36"]
network, data = network_of(entry)[1], data_of(entry)
options, budget = Options((Epsilon.parse("36/255"),)), Budget(7, probability=1e-9, samples=4)
analysis = Analysis.of(network, options, budget, device="cpu", reach=None, softmax=False)
duals = Duals.of(analysis, 0.5)
pixels, labels = torch.from_numpy(data.pixels(range(4))).double(), torch.arange(4)
labels = torch.from_numpy(data.labels[:4])
samples = Samples.of(analysis, pixels, labels, budget.open(torch.arange(4))).anchored
region = duals.prepare(samples, torch.full((4,), 0.1, dtype=torch.float64), None)
objectives, _ = duals.prover.objectives(samples, torch.ones(4, 10) > 0)
rows = torch.arange(many) % len(objectives)
objectives = objectives.select(rows)
state, prover = select(region.state, objectives.rows), duals.prover
single, small = to_dtype(state, torch.float32), objectives.to(torch.float32)
found = prover.guide.start(select(single, slice(0, 8)), small.select(slice(0, 8)))
found = found.select(torch.arange(many) % 8)
if kind == "sought":
    prover.guide.optimise(single, small, found, 2)
else:
    prover.dual.certified(state, objectives, found)
print(json.dumps({"peak": peak(), "values": prover.values}))
"""


def peak(kind: str, many: int) -> dict:
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, kind, str(many)], check=True, stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
    )  # fmt: skip
    return json.loads(ran.stdout)


@needs_models
@pytest.mark.benchmark
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
@pytest.mark.parametrize("kind", ["sought", "proven"])
def test_chunks_take_no_more_than_is_counted_on(kind):
    few, many = 400, 1600
    less, more = peak(kind, few), peak(kind, many)
    each = (more["peak"] - less["peak"]) / ((many - few) * more["values"])
    print(f"\n{kind}: {each:.0f} bytes for each of {more['values']} numbers of an objective")
    assert each < BYTES
