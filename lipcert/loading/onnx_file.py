"""Opens ONNX files that nobody vouches for: parsed, bounded and checked, external data included.

Whatever is wrong with a file ends in one ``CannotCertify``.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx.shape_inference

from lipcert.errors import CannotCertify, UsageError
from lipcert.mistaken import mistaken

LARGEST_FILE = 2**31 - 1
MOST_NODES = 2**15
OLDEST_OPSET = 7
NUMBERS_ONLY = (
    "only an ONNX file is read, never a pickle, which could run code; export the model to ONNX, or "
    "give its state dict with --arch package.module:factory"
)


@dataclass(frozen=True)
class OnnxFile:
    """A checked model with all its tensors inside, and the sha256 of every file read for it."""

    model: onnx.ModelProto
    files: dict[str, str]


def open_onnx(path: Path) -> OnnxFile:
    """Errors: ``UsageError`` where there is no such file, ``CannotCertify`` for its content."""
    if not path.is_file():
        what = "not a file" if path.exists() else "no such file"
        raise UsageError(f"{path}: {what}; give the path of an ONNX file")
    if path.suffix == ".safetensors":
        raise UsageError(weights_alone(path))
    if path.suffix in (".pt", ".pth", ".pkl", ".ckpt"):
        raise UsageError(f"{path.name}: {NUMBERS_ONLY}")
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise CannotCertify(f"{path.name}: larger than 2 GiB, which is not read")
        content = path.read_bytes()
        files = {path.name: hashlib.sha256(content).hexdigest()}
        model = onnx.ModelProto.FromString(content)
        del content
        files |= _load_external(model, path)
    except CannotCertify:
        raise
    except Exception as error:
        said = mistaken(path) or f": {one_line(error)}; export the model to ONNX"
        raise CannotCertify(f"{path.name}: not a readable ONNX file{said}") from error
    if not model.ByteSize():
        raise CannotCertify(f"{path.name}: not a readable ONNX file{mistaken(path)}")
    ordered(model)
    check(model, path.name)
    return OnnxFile(model, files)


def weights_alone(path: Path) -> str:
    """Why a file of weights is no model, and what to do."""
    return (
        f"{path.name}: weights alone are no model; say with --arch what they belong to, a factory "
        "(package.module:name) or the name of an architecture, or give an ONNX file"
    )


def one_line(error: BaseException) -> str:
    # What other libraries say may come in colour.
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split()) or type(error).__name__
    return text if len(text) <= 400 else text[:400] + " …"


def ordered(model: onnx.ModelProto) -> None:
    """Puts the nodes of a graph in an order in which each comes after those that it reads, as
    onnxruntime does; those of a circle keep their places, which the checker refuses."""
    nodes = list(model.graph.node)
    makers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    waits = [
        {makers[n] for n in names_in(node) if n in makers} - {i} for i, node in enumerate(nodes)
    ]
    if all(max(wait, default=-1) < i for i, wait in enumerate(waits)):
        return
    readers: dict[int, list[int]] = {}
    for i, wait in enumerate(waits):
        for j in wait:
            readers.setdefault(j, []).append(i)
    ready = [i for i, wait in enumerate(waits) if not wait]
    order: list[int] = []
    while ready:
        order.append(ready.pop())
        for i in readers.get(order[-1], []):
            waits[i].discard(order[-1])
            if not waits[i]:
                ready.append(i)
    if len(order) == len(nodes):
        del model.graph.node[:]
        model.graph.node.extend(nodes[i] for i in order)


def check(model: onnx.ModelProto, name: str) -> None:
    """Structure, types and shapes, and every tensor against the size that it declares.

    Raises ``CannotCertify`` under the file's ``name``.
    """
    try:
        _check(model, name)
    except CannotCertify:
        raise
    except Exception as error:
        raise CannotCertify(f"{name}: not a valid ONNX model: {one_line(error)}") from error


def _check(model: onnx.ModelProto, name: str) -> None:
    _bound_size(model, name)
    if any(graph.sparse_initializer for graph in graphs_of(model)):
        raise CannotCertify(f"{name}: sparse initializers are not supported; store them dense")
    for tensor in _tensors(model):
        _check_tensor(tensor, name)
    onnx.checker.check_model(model, full_check=True)
    versions = {o.version for o in model.opset_import if o.domain in ("", "ai.onnx")}
    if len(versions) > 1:
        raise CannotCertify(
            f"{name}: imports the default operators in the versions {sorted(versions)}, under both "
            "of their names; keep one"
        )
    version = opset(model)
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= version <= newest:
        raise CannotCertify(
            f"{name}: opset {version}; the installed onnx reads opsets {OLDEST_OPSET} to {newest}"
        )


def opset(model: onnx.ModelProto) -> int:
    """The version of the default operator domain, 0 if the file imports none."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the bodies of its own functions in the place of their calls."""
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def tensor_array(tensor: onnx.TensorProto, name: str) -> np.ndarray:
    """Its numbers, read-only for the caller; ``name`` is the file's."""
    try:
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    except Exception as error:
        raise CannotCertify(f"{name}: tensor {tensor.name!r}: {one_line(error)}") from error


def own_numbers(graph: onnx.GraphProto) -> int:
    """How many numbers the tensors of a checked graph hold."""
    attributes = (attribute.t for node in graph.node for attribute in node.attribute)
    return sum(math.prod(t.dims) for t in (*graph.initializer, *attributes))


def deployed_part(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """The model without what this output does not need, which a runtime would compute as well;
    itself where it needs all."""
    whole = inlined(model)
    part = part_for(whole, output)
    everything = len(part.graph.node) == len(whole.graph.node) and len(whole.graph.output) == 1
    return model if everything and whole.graph.output[0].name == output else part


def part_for(whole: onnx.ModelProto, value: str) -> onnx.ModelProto:
    """What leads to one value of a model without functions of its own, with it as the output."""
    wanted, needed = {value}, list[onnx.NodeProto]()
    for node in reversed(whole.graph.node):
        if wanted.intersection(node.output):
            wanted.update(name for name in names_in(node) if name)
            needed.append(node)
    part = onnx.ModelProto()
    part.CopyFrom(whole)
    del part.graph.node[:], part.graph.output[:], part.graph.initializer[:]
    part.graph.node.extend(reversed(needed))
    part.graph.output.append(_information(whole, value))
    part.graph.initializer.extend(t for t in whole.graph.initializer if t.name in wanted)
    return part


def _information(whole: onnx.ModelProto, value: str) -> onnx.ValueInfoProto:
    """Type and shape of a value, as far as they are known."""
    for known in (whole.graph, None):
        graph = onnx.shape_inference.infer_shapes(whole).graph if known is None else known
        for told in (*graph.output, *graph.value_info, *graph.input):
            if told.name == value:
                found: onnx.ValueInfoProto = told
                return found
    return onnx.helper.make_empty_tensor_value_info(value)


def names_in(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, in its inner graphs too."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from names_in(inner)
            yield from (value.name for value in graph.output)


def _check_tensor(tensor: onnx.TensorProto, name: str) -> None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise CannotCertify(
            f"{name}: tensor {tensor.name!r} keeps external data outside the graph's initializers"
        )
    if any(extent < 0 for extent in tensor.dims):
        raise CannotCertify(f"{name}: tensor {tensor.name!r} has negative extents")
    # The smallest encoding is four bits a number, so that nothing large is made of a lie.
    if math.prod(tensor.dims) > 2 * tensor.ByteSize():
        raise CannotCertify(
            f"{name}: tensor {tensor.name!r} of {list(tensor.dims)} holds too little data"
        )
    array = tensor_array(tensor, name)
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise CannotCertify(
            f"{name}: tensor {tensor.name!r} holds NaN, so that its outputs are no numbers; export "
            "the model again from weights that are finite"
        )


def _bound_size(model: onnx.ModelProto, name: str) -> None:
    """Refuses functions that call each other in a circle or unfold without measure."""
    sizes: dict[tuple[str, str], int] = {}
    bodies = {(f.domain, f.name): f.node for f in model.functions}

    def size(nodes: object, above: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in nodes:  # type: ignore[attr-defined]
            key = (node.domain, node.op_type)
            if key in above:
                raise CannotCertify(f"{name}: function {key[1]!r} calls itself")
            if key in bodies and key not in sizes:
                sizes[key] = size(bodies[key], (*above, key))
            total += sizes.get(key, 1)
            total += sum(size(g.node, above) for a in node.attribute for g in (a.g, *a.graphs))
            if total > MOST_NODES:
                raise CannotCertify(f"{name}: more than {MOST_NODES} nodes")
        return total

    size(model.graph.node, ())


def graphs_of(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The graph and every graph inside its nodes and functions."""
    waiting: list[onnx.GraphProto] = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while waiting or nodes:
        if waiting:
            graph = waiting.pop()
            yield graph
            nodes += graph.node
        else:
            node = nodes.pop()
            waiting += [a.g for a in node.attribute if a.HasField("g")]
            waiting += [graph for a in node.attribute for graph in a.graphs]


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    graphs = list(graphs_of(model))
    nodes = [node for graph in graphs for node in graph.node]
    nodes += [node for function in model.functions for node in function.node]
    yield from (tensor for graph in graphs for tensor in graph.initializer)
    for attribute in (a for node in nodes for a in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (t for t in (sparse.values, sparse.indices) if t.ByteSize())


def _load_external(model: onnx.ModelProto, path: Path) -> dict[str, str]:
    """Reads the initializers that live in files beside the model; returns those files' digests."""
    folder, files, total = path.parent.resolve(), dict[str, str](), path.stat().st_size
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        told = f"{path.name}: tensor {tensor.name!r}"
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        file = folder / location
        inside = bool(location) and file.resolve().is_relative_to(folder)
        if not inside or ".." in Path(location).parts or Path(location).is_absolute():
            raise CannotCertify(f"{told}: external data {location!r} lies outside its folder")
        if not file.is_file():
            raise CannotCertify(
                f"{told}: its external data {location!r} is missing; put that file beside "
                f"{path.name}"
            )
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        offset = int(entries.get("offset", 0))
        needed = math.prod(tensor.dims) * dtype.itemsize
        length = int(entries.get("length", needed))
        total += needed
        if min((*tensor.dims, 0)) < 0 or length != needed or offset < 0:
            raise CannotCertify(f"{told}: {list(tensor.dims)} does not take {length} bytes")
        if total > LARGEST_FILE:
            raise CannotCertify(f"{path.name}: with its external data larger than 2 GiB")
        if offset + length > file.stat().st_size:
            raise CannotCertify(f"{told}: {location!r} ends before its data does")
        with file.open("rb") as stream:
            if location not in files:
                files[location] = hashlib.file_digest(stream, "sha256").hexdigest()
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")
    return files
