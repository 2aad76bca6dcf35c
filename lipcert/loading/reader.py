"""Reads an ONNX file into a network, or says everything that stands against it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from lipcert.errors import CannotCertify, LipcertError
from lipcert.loading.batch_axis import CUT, OTHER, PAIR, apart, obstacle
from lipcert.loading.entry import taken
from lipcert.loading.graph_reader import GraphReader, ReadGraph
from lipcert.loading.lattices import grouped
from lipcert.loading.onnx_file import inlined, one_line
from lipcert.loading.runtime import Runtime
from lipcert.loading.spellings import respelled
from lipcert.loading.stages import staged
from lipcert.loading.value import place
from lipcert.network import Network
from lipcert.rounding import DOUBLE, HALF

__all__ = ["ReadGraph", "network_of", "read"]


def read(model: onnx.ModelProto, name: str, output: str | None = None) -> ReadGraph:
    """The function of one sample that a checked model computes; ``name`` is the file's.

    ``output`` chooses among several outputs. Raises ``UsageError`` where it does not fit.
    """
    try:
        whole, conditions = inlined(model), dict[str, bool]()
        while True:
            reader = GraphReader(whole, name, output, 1, conditions)
            reading = reader.read()
            if reader.branch is None:
                break
            node, condition = reader.branch
            whole = taken(whole, node.output[0], condition)
            conditions[node.input[0]] = condition
        if reading.network is not None and reading.any_batch:
            pair = GraphReader(whole, name, output, PAIR, conditions)
            reading = _each_by_itself(reader, reading, pair, model)
        if reading.network is None:
            return reading
        return replace(reading, network=staged(grouped(respelled(reading.network))))
    except LipcertError:
        raise
    except Exception as error:
        raise CannotCertify(f"{name}: cannot be read: {one_line(error)}") from error


def network_of(reading: ReadGraph, name: str) -> Network:
    """The network, or one ``CannotCertify`` that lists every problem."""
    if reading.network is None:
        count = len(reading.problems)
        listed = "".join(f"\n  {problem}" for problem in reading.problems)
        raise CannotCertify(
            f"{name}: {count} obstacle{'s' if count > 1 else ''}; change the model, export it "
            f"without {'them' if count > 1 else 'it'}, or choose another output:{listed}"
        )
    return reading.network


def _each_by_itself(
    reader: GraphReader, reading: ReadGraph, pair: GraphReader, model: onnx.ModelProto
) -> ReadGraph:
    """The reading of a file that takes any number of samples, refused where it does not treat each
    of them by itself."""
    assert reading.network is not None
    both = pair.read()
    if both.network is None:
        if not _takes_two(model, reader):
            return replace(reading, any_batch=False)
        return replace(reading, network=None, problems=(f"{both.problems[0]}; {OTHER}",))
    found = obstacle(reader.nodes, reader.values, pair.values, pair.made)
    if found is None and not apart(reading.network, both.network):
        found = reader.nodes[-1], CUT
    if found is None:
        return reading
    node, reason = found
    place_of, rows = reader.nodes.index(node), list(reading.operators)
    rows[place_of] = replace(rows[place_of], supported=False, note=reason)
    problem = f"{rows[place_of].title(place(node))}: {reason}"
    return replace(reading, network=None, problems=(problem,), operators=tuple(rows))


def _takes_two(model: onnx.ModelProto, reader: GraphReader) -> bool:
    """Whether onnxruntime runs the file on two samples at once."""
    shape = (PAIR, *(reader.shape or ())[1:])
    kind = {DOUBLE: np.float64, HALF: np.float16}.get(reader.own, np.float32)
    try:
        Runtime(model.SerializeToString(), reader.name).run(np.zeros(shape, kind), reader.output)
    except CannotCertify:
        return False
    return True
