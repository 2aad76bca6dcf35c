"""What a run will take is said before it is taken, with what takes less."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from lipcert.cli.main import main
from lipcert.loading.architectures import build
from lipcert.options import Epsilon, Options
from lipcert.run import ModelSource
from lipcert.run.cost import least_seconds, norm_seconds, norms_told, samples_told
from lipcert.run.inspection import inspect_model, operators_of
from lipcert.run.job import Preprocessing
from lipcert.run.model import open_model
from lipcert.run.progress import Watch

EPS = (Epsilon.parse("0.1"),)
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "digits.onnx"


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """8C2F for pictures of 64 × 64: its norms took some two minutes of processor time."""
    path = tmp_path_factory.mktemp("large") / "8c2f.onnx"
    onnx.save(build("8c2f", (3, 64, 64), 200, 0), path)
    return path


def network(path):
    return open_model(ModelSource(path), Preprocessing()).loaded.network


def test_norms_of_a_large_network_are_predicted_and_a_cheaper_way_is_named(large):
    found, options = network(large), Options(eps=EPS)
    assert 60 < norm_seconds(found, options) < 600
    told = norms_told(found, options, "--no-norms", every=True)
    assert "min of processor time; less with --no-norms" in told
    # Tubes need none: what is told is what these take.
    assert "norms" not in norms_told(found, options, "--no-norms")
    assert "GiB an image" in norms_told(found, options, "--no-norms")
    for cheap in (Options(eps=EPS, norms="deterministic"), Options(eps=EPS, failure_probability=0)):
        assert norm_seconds(found, cheap) == 0
        assert "less with" not in norms_told(found, cheap, "--no-norms")


def test_samples_are_predicted_by_their_number_and_the_effort(large):
    found = network(large)
    standard, fast = Options(eps=EPS), Options(eps=EPS, effort="fast")
    assert least_seconds(found, standard, 10) == pytest.approx(
        10 * least_seconds(found, standard, 1)
    )
    small = network(EXAMPLE)
    assert least_seconds(small, fast, 10) < least_seconds(small, standard, 10)
    # It took 118 s of processor time in its tangents when `fast` had a fifth more of them.
    assert 40 < least_seconds(found, fast, 1) < 240
    told = samples_told(found, standard, 1000, 2)
    assert told.endswith("GiB an image; less with --effort fast or --limit")
    assert "1000 samples" in told
    assert "2 processes" in told
    assert samples_told(found, fast, 1000, 1).endswith("less with --limit")
    assert "less" not in samples_told(found, Options(eps=EPS, method="local"), 1000, 1)
    assert "less" not in samples_told(network(EXAMPLE), standard, 10, 1)


class Told(Exception):
    pass


class Stops(Watch):
    """As norms begin."""

    def stage(self, text: str) -> None:
        if "norms" in text:
            raise Told(text)


def test_inspect_says_it_before_it_begins(large, capsys):
    with pytest.raises(Told, match=r"processor time; less with --no-norms or --norms determ"):
        inspect_model(ModelSource(large), Options(eps=EPS), watch=Stops())
    assert main(["inspect", str(large), "--no-norms"]) == 0
    assert "less with" not in capsys.readouterr().err


def test_every_node_has_its_cost_before_anything_is_bounded():
    """Counted by hand: outputs times what is summed for each; an activation's values."""
    found = inspect_model(ModelSource(EXAMPLE), None)
    rows = {row["operator"]: row for row in operators_of(ModelSource(EXAMPLE))}
    conv = [16 * 8 * 8 * 3 * 3, 16 * 4 * 4 * 16 * 4 * 4]
    assert [node["products"] for node in rows["Conv"]["nodes"]] == conv
    assert [node["products"] for node in rows["Relu"]["nodes"]] == [1024, 256, 64]
    assert rows["Flatten"]["products"] == 0
    total = sum(row["products"] for row in rows.values())
    assert found["cost"]["products"] == total == 74752 + 1344 + 256 * 64 + 64 * 10
    assert found["cost"]["bounds"] == "dual"
    assert "norms" not in found


class Attention(nn.Module):
    """Two products of matrices, a softmax, and a GELU in parts."""

    def __init__(self):
        super().__init__()
        self.both, self.last = nn.Linear(5, 10), nn.Linear(20, 3)

    def forward(self, x):
        q, v = self.both(x).chunk(2, 2)
        mixed = torch.softmax(q @ q.transpose(1, 2), 2) @ v
        return self.last(functional.gelu(mixed).flatten(1))


@pytest.mark.filterwarnings("ignore")
def test_joints_have_a_cost_and_a_bound_too(tmp_path):
    path = tmp_path / "m.onnx"
    torch.onnx.export(Attention(), (torch.rand(1, 4, 5),), path, dynamo=False)
    rows = {}
    for row in operators_of(ModelSource(path)):
        rows.setdefault((row["operator"], row["bound"]), []).extend(row["nodes"])
    assert [node["products"] for node in rows["MatMul", "enclosed"]] == [4 * 4 * 5, 4 * 5 * 4]
    assert [node["products"] for node in rows["Softmax", "enclosed"]] == [16]
    found = inspect_model(ModelSource(path), Options(eps=EPS))
    whole = sum(node["products"] for nodes in rows.values() for node in nodes)
    assert found["cost"]["products"] == whole
    assert found["cost"]["bounds"] == "tube"
    assert "norm_seconds" not in found["cost"]


def test_a_small_network_is_not_warned_of():
    found = network(EXAMPLE)
    assert norm_seconds(found, Options(eps=EPS)) < 2
    assert norms_told(found, Options(eps=EPS), "--no-norms").endswith("parameters")
