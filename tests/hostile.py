"""Files that lie: mutations of sound ONNX, npz and safetensors files, and how loaders take them.

Each mutation is made from a seed alone, so that a failure names the file that it needs.
"""

from __future__ import annotations

import io
import json
import resource
import signal
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
import onnx
import safetensors.numpy
from loading.test_load_hostile import SMALL
from loading.test_load_operators import CASES
from onnx import TensorProto, numpy_helper

from lipcert.data import load_dataset
from lipcert.errors import CannotCertify, UsageError
from lipcert.loading import inspect_operators, load_model

SECONDS, MEBIBYTES = 20, 512
EXTREME = [0, 1, -1, 2, 7, -(2**31), 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63)]
PATHS = ["../model.onnx", "/etc/passwd", "sub/../../x", "", ".", "model.onnx", "a\0b", "x" * 5000]
DTYPES = ["F32", "F64", "I8", "BOOL", "BF16", "F8_E4M3", "F99", "", 7, None]

Rng = np.random.Generator
Outcomes = Counter[str]


def pick(rng: Rng, options):
    return options[int(rng.integers(len(options)))]


def damaged(content: bytes, rng: Rng) -> bytes:
    """Bits flipped, bytes replaced, cut out, put in or doubled, the end missing."""
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        place, length = int(rng.integers(len(changed))), int(rng.integers(1, 9))
        match int(rng.integers(6)):
            case 0:
                changed[place] ^= 1 << int(rng.integers(8))
            case 1:
                changed[place] = int(rng.integers(256))
            case 2:
                del changed[place : place + length]
            case 3:
                changed[place:place] = rng.bytes(length)
            case 4:
                changed[place:place] = changed[place : place + 8 * length]
            case 5 if rng.random() < 0.3:
                del changed[place:]
        if not changed:
            break
    return bytes(changed)


# ONNX --------------------------------------------------------------------------------------------


def _tensor(model: onnx.ModelProto, rng: Rng) -> None:
    if not model.graph.initializer:
        return
    tensor = pick(rng, model.graph.initializer)
    match int(rng.integers(6)):
        case 0:
            if tensor.dims:
                tensor.dims[int(rng.integers(len(tensor.dims)))] = pick(rng, EXTREME)
        case 1:
            tensor.dims.append(pick(rng, EXTREME))
        case 2:
            tensor.data_type = int(rng.integers(0, 30))
        case 3:
            tensor.raw_data = tensor.raw_data[: int(rng.integers(len(tensor.raw_data) + 1))]
        case 4:
            tensor.raw_data = rng.bytes(len(tensor.raw_data))
        case 5:
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", pick(rng, PATHS)), ("offset", str(pick(rng, EXTREME))),
                               ("length", str(pick(rng, EXTREME)))):  # fmt: skip
                tensor.external_data.add(key=key, value=value)
            tensor.ClearField("raw_data")


def _wires(model: onnx.ModelProto, rng: Rng) -> None:
    names = [n for node in model.graph.node for n in (*node.input, *node.output)] + ["", "nowhere"]
    node = pick(rng, model.graph.node)
    side = node.input if rng.random() < 0.6 and node.input else node.output
    match int(rng.integers(3)):
        case 0:
            side[int(rng.integers(len(side)))] = pick(rng, names)
        case 1:
            side.append(pick(rng, names))
        case 2:
            model.graph.node.append(pick(rng, model.graph.node))


def _attributes(model: onnx.ModelProto, rng: Rng) -> None:
    node = pick(rng, model.graph.node)
    if not node.attribute:
        node.op_type = pick(rng, ["Relu", "Conv", "Gemm", "Reshape", "Loop", "If", "Exp", "\n"])
        return
    attribute = pick(rng, node.attribute)
    match int(rng.integers(4)):
        case 0:
            attribute.ints.append(pick(rng, EXTREME))
        case 1:
            attribute.ints[:] = [pick(rng, EXTREME) for _ in attribute.ints]
        case 2:
            attribute.i, attribute.f = pick(rng, EXTREME), float("nan")
        case 3:
            attribute.type = int(rng.integers(0, 15))


def _shapes(model: onnx.ModelProto, rng: Rng) -> None:
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    kind = pick(rng, values).type.tensor_type
    dims = kind.shape.dim
    if not dims or rng.random() < 0.2:
        kind.elem_type = int(rng.integers(0, 30))
    else:
        dims[int(rng.integers(len(dims)))].dim_value = pick(rng, EXTREME)
    if rng.random() < 0.2:
        model.opset_import[0].version = int(rng.integers(-3, 40))


def _constants(model: onnx.ModelProto, rng: Rng) -> None:
    """Whole-number tensors (shapes, axes, repeats) with extreme values."""
    whole = [t for t in model.graph.initializer if t.data_type == TensorProto.INT64]
    if whole:
        tensor = pick(rng, whole)
        values = np.frombuffer(tensor.raw_data[: len(tensor.raw_data) // 8 * 8], "<i8").copy()
        if values.size:
            values[int(rng.integers(values.size))] = pick(rng, EXTREME)
            tensor.raw_data = values.tobytes()


def mutated_onnx(rng: Rng) -> bytes:
    """A mutation of the tests' own models: of its bytes, or of what its messages say."""
    model = SMALL.model() if rng.random() < 0.3 else pick(rng, CASES).model()
    if rng.random() < 0.4:
        return damaged(model.SerializeToString(), rng)
    for _ in range(int(rng.integers(1, 4))):
        pick(rng, [_tensor, _wires, _attributes, _shapes, _constants])(model, rng)
    return model.SerializeToString()


# npz and safetensors -----------------------------------------------------------------------------


def mutated_npz(rng: Rng) -> bytes:
    """Headers with other shapes, types and orders than the data, objects, damaged archives."""
    file = io.BytesIO()
    arrays = {
        "images": rng.integers(0, 256, (2, 5, 5, 3)).astype(np.uint8),
        "labels": np.array([1, 0]),
    }
    lying = pick(rng, [*arrays, None])
    with zipfile.ZipFile(file, "w", pick(rng, [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as out:
        for name, array in arrays.items():
            shape = [int(pick(rng, EXTREME)) if rng.random() < 0.4 else n for n in array.shape]
            told = {
                "descr": pick(rng, [array.dtype.str, "<f8", "|O", "<U9", ">i2", "|V0", "<M8[s]"]),
                "fortran_order": pick(rng, [False, True, 3]),
                "shape": pick(rng, [array.shape, tuple(shape), (), "all", (2.5,)]),
            }
            sound = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
            header = repr(told if lying == name else sound).encode()
            size = pick(rng, [len(header), *EXTREME[:4]]) if lying == name else len(header)
            version = pick(rng, [b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"])
            prefix = b"\x01\x00" + struct.pack("<H", len(header))
            if lying == name and rng.random() < 0.5:
                prefix = version + struct.pack("<I", size % 2**32)
            data = damaged(array.tobytes(), rng) if rng.random() < 0.2 else array.tobytes()
            out.writestr(f"{name}.npy", b"\x93NUMPY" + prefix + header + data)
    content = file.getvalue()
    return damaged(content, rng) if lying is None else content


def mutated_safetensors(rng: Rng) -> bytes:
    """A header whose sizes, places, types and names do not fit the data, or damaged bytes."""
    tensors = {t.name: numpy_helper.to_array(t) for t in SMALL.model().graph.initializer
               if t.data_type == TensorProto.FLOAT}  # fmt: skip
    content = safetensors.numpy.save(tensors)
    if rng.random() < 0.3:
        return damaged(content, rng)
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    entry = header[pick(rng, sorted(tensors))]
    match int(rng.integers(6)):
        case 0:
            entry["data_offsets"][int(rng.integers(2))] = pick(rng, EXTREME)
        case 1:
            entry["shape"] = [pick(rng, EXTREME) for _ in range(int(rng.integers(4)))]
        case 2:
            entry["dtype"] = pick(rng, DTYPES)
        case 3:
            entry["data_offsets"] = [0, len(data)]
        case 4:
            header[pick(rng, ["w", "extra", "__metadata__", ""])] = pick(rng, [entry, [], {}, None])
        case 5:
            data = pick(rng, [b"", data + b"\0" * 8, data[:-3], rng.bytes(len(data))])
    told = json.dumps(header).encode()
    told = pick(rng, [told, told, told, told.replace(b'"g"', b'"w"'), b"[" * 50_000, told[:-1]])
    length = pick(rng, [len(told), len(told), len(told), 0, len(told) + 1, 2**40, 2**64 - 1])
    return struct.pack("<Q", length) + told + data


# Loaders -----------------------------------------------------------------------------------------


def _load_onnx(path: Path) -> None:
    try:
        inspect_operators(path)
    finally:
        load_model(path)


def _load_weights(path: Path) -> None:
    model = path.with_name("sound.onnx")
    if not model.exists():
        model.write_bytes(SMALL.model().SerializeToString())
    load_model(model, weights=path)


KINDS: dict[str, tuple[Callable[[Rng], bytes], Callable[[Path], object]]] = {
    "model.onnx": (mutated_onnx, _load_onnx),
    "data.npz": (mutated_npz, lambda path: load_dataset(str(path))),
    "weights.safetensors": (mutated_safetensors, _load_weights),
}


@contextmanager
def at_most(seconds: int, what: str) -> Iterator[None]:
    def late(signum: int, frame: FrameType | None) -> None:
        raise AssertionError(f"{what}: not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _is_told_well(error: str, name: str, seed: int) -> None:
    first, *rest = error.splitlines()
    assert name in first, f"seed {seed}: {error}"
    assert all(line.startswith("  ") for line in rest), f"seed {seed}: {error}"


def offered(name: str, seeds: range, folder: Path) -> Outcomes:
    """Mutations of one kind through the loader; how many were loaded, and refused with which error.

    Fails where anything else is raised, an error does not begin with one line that names the file,
    a file takes more than its time, or all of them more than their memory.
    """
    mutate, load = KINDS[name]
    outcomes: Outcomes = Counter()
    path = folder / name
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in seeds:
        path.write_bytes(mutate(np.random.default_rng(seed)))
        try:
            with at_most(SECONDS, f"{name}, seed {seed}"):
                load(path)
            outcomes["loaded"] += 1
        except (CannotCertify, UsageError) as error:
            _is_told_well(str(error), name, seed)
            outcomes[type(error).__name__] += 1
        except BaseException as error:
            error.add_note(f"{name}, seed {seed}")
            raise
        more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
        assert more < MEBIBYTES << 10, f"{name}, seed {seed}: {more >> 10} MiB more"
    return outcomes
