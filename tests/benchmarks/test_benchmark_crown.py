"""Certified radii beside those of auto_LiRPA's CROWN (norm 2), and beside ``local``.

auto_LiRPA wants an environment of its own: install it there and name its interpreter.

LIPCERT_LIRPA_PYTHON=…/bin/python pytest -m benchmark tests/benchmarks/test_benchmark_crown.py -s
"""

import json
import os
import subprocess
import time
from pathlib import Path
from statistics import fmean, median

import numpy as np
import onnx
import pytest
import torch
from benchmarks.shared import MODELS, data_of, index, needs_models, network_of
from onnx import numpy_helper

from lipcert.certification import Certifier
from lipcert.options import Epsilon, Options
from lipcert.run.batches import usual

PYTHON = os.environ.get("LIPCERT_LIRPA_PYTHON")
IMAGES = int(os.environ.get("LIPCERT_CROWN_IMAGES", "100"))

pytestmark = [
    pytest.mark.benchmark,
    needs_models,
    pytest.mark.skipif(
        PYTHON is None, reason="set LIPCERT_LIRPA_PYTHON to a Python that has auto_LiRPA"
    ),
]

# Networks, and the effort of ``auto``.
CASES = [
    ("mnist_fc_256x4", "max"),
    ("mnist_convsmall_pgdk_eran", "standard"),
    ("mnist_cnn_a_adv", "standard"),
    ("cifar10_cnn_a_adv", "standard"),
]


def steps_of(model: onnx.ModelProto, std: list[float] | None):
    """The file's chain of layers by name, and their tensors; the first takes pixels less the mean.

    No layer divides by ``std``: auto_LiRPA bounds the first affine layer by its norm times eps, as
    if nothing came before it (such bounds were seen above what gradient descent reaches).
    """
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    steps: list[tuple[str, dict]] = []
    tensors: dict[str, np.ndarray] = {}
    for node in model.graph.node:
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        number = len(steps)
        if node.op_type in ("Conv", "Gemm"):
            weight, bias = map(held.get, node.input[1:3])
            if std is not None and not tensors:
                assert node.op_type == "Conv"
                weight = np.float32(weight / np.reshape(std, (1, -1, 1, 1)))
            tensors |= {f"{number}.weight": weight, f"{number}.bias": bias}
        match node.op_type:
            case "Conv":
                assert given["group"] == 1
                assert given["pads"][:2] == given["pads"][2:]
                steps.append(
                    ("convolution", {"stride": given["strides"], "padding": given["pads"][:2]})
                )
            case "Gemm":
                assert given.get("transB") == 1
                steps.append(("dense", {}))
            case "Relu":
                steps.append(("relu", {}))
            case "Flatten" | "Reshape" if steps:
                steps.append(("flatten", {}))
            case "Transpose":
                steps.append(("permute", {"order": given["perm"]}))
            case "Flatten" | "Constant":
                pass
            case kind:
                raise NotImplementedError(kind)
    return steps, tensors


def written(name: str, folder: Path):
    """The network's file for the other interpreter, with the first images; the network, the data
    and the images' places here."""
    entry = index()[name]
    data, chosen = data_of(entry), np.arange(IMAGES)
    pixels, labels = data.pixels(chosen), data.labels[chosen]
    steps, tensors = steps_of(onnx.load(MODELS / entry["onnx"]), entry["std"])
    mean = np.reshape(entry["mean"] or [0.0], (1, -1, 1, 1))
    given = np.float32(pixels - mean)
    if steps[0][0] == "dense":
        given = given.reshape(IMAGES, -1)
    path = folder / "network.npz"
    np.savez(path, images=given, labels=labels, steps=json.dumps(steps), **tensors)
    return path, network_of(entry)[1], data, chosen


def crown_of(*arguments: str):
    done = subprocess.run(
        [str(PYTHON), str(Path(__file__).with_name("crown_radii.py")), *arguments],
        stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


# Networks that were trained for small Lipschitz constants, and the radii of their paper.
@pytest.mark.parametrize(
    ("name", "eps"), [("sdpc_cifar10_cnn_a", "24/255"), ("sdpc_cifar10_convdeep", "24/255")]
)
def test_twenty_times_as_fast_as_crown_and_never_looser(name: str, eps: str, tmp_path: Path):
    torch.set_num_threads(1)
    path, network, data, chosen = written(name, tmp_path)
    epsilon = Epsilon.parse(eps)
    crown = crown_of(str(path), repr(epsilon.rounded_up))
    # As CROWN, at one radius and no other.
    options = Options((epsilon,), effort="fast", radii=False)
    certifier = Certifier(network, options, samples=IMAGES + 20)

    def certify(some):
        x, y = torch.from_numpy(data.pixels(some)), torch.from_numpy(data.labels[some])
        return certifier(x, y, some.tolist())

    certify(IMAGES + np.arange(20))
    samples, begun = [], time.process_time()
    for some in np.array_split(chosen, max(1, IMAGES // usual(options, network))):
        samples += certify(some)
    seconds = time.process_time() - begun
    ours = [bool(sample.certified) for sample in samples]
    theirs = [margin > 0 for margin in crown["margins"]]
    print(f"\n{name} at {eps}, {IMAGES} images: CROWN {crown['seconds'] / IMAGES:.3f} "
          f"s each, certifies {sum(theirs)}; fast {seconds / IMAGES:.4f} s each, "
          f"certifies {sum(ours)}: {crown['seconds'] / seconds:.1f} times as fast")  # fmt: skip
    assert all(mine for mine, other in zip(ours, theirs, strict=True) if other)
    assert crown["seconds"] >= 20 * seconds


@pytest.mark.parametrize(("name", "effort"), CASES)
def test_no_less_than_crown_and_twice_local(name: str, effort: str, tmp_path: Path) -> None:
    path, network, data, chosen = written(name, tmp_path)
    begun = time.perf_counter()
    crown = crown_of(str(path))
    print(f"\n{name}, {IMAGES} images; CROWN in {time.perf_counter() - begun:.0f} s")
    radii: dict[str, list[float | None]] = {"CROWN": crown}
    for method in ("local", "auto"):
        options = Options(
            (Epsilon.parse("0.1"),), method=method, effort=effort  # type: ignore[arg-type]
        )  # fmt: skip
        certifier = Certifier(network, options, samples=IMAGES)
        begun, samples = time.process_time(), []
        for some in np.array_split(chosen, max(1, IMAGES // 25)):
            x, y = torch.from_numpy(data.pixels(some)), torch.from_numpy(data.labels[some])
            samples += certifier(x, y, some.tolist())
        radii[method] = [sample.radius if sample.correct else None for sample in samples]
        said = f"{method} ({effort})" if method == "auto" else method
        print(f"  {said} in {time.process_time() - begun:.0f} CPU-seconds")
    right = [row for row in range(IMAGES) if crown[row] is not None]
    assert right == [row for row in range(IMAGES) if radii["auto"][row] is not None]
    of = {key: [float(values[row] or 0.0) for row in right] for key, values in radii.items()}
    means = {key: fmean(values) for key, values in of.items()}
    for key, mean in means.items():
        print(f"  {key:6} mean radius {mean:.5f} over {len(right)} correct")
    for other in ("CROWN", "local"):
        pairs = [a / b for a, b in zip(of["auto"], of[other], strict=True) if b > 0]
        print(
            f"  auto / {other:6}: of the means {means['auto'] / means[other]:.3f}, paired: mean "
            f"{fmean(pairs):.3f}, median {median(pairs):.3f}, least {min(pairs):.3f}, "
            f"below 1 in {sum(pair < 1 for pair in pairs)} of {len(pairs)}"
        )
    assert means["auto"] >= means["CROWN"]
    assert means["auto"] >= 2 * means["local"]
