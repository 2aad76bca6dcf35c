"""onnxruntime, which runs the deployed file: unoptimised, on one thread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipcert.errors import CannotCertify
from lipcert.loading.onnx_file import one_line

Array = NDArray[Any]


class Runtime:
    """A model's content, ready to run; ``CannotCertify`` under ``name`` where it does not."""

    def __init__(self, content: bytes, name: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self.name = name
        try:
            self.session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise self._refusal(error) from error

    def run(self, values: Array, output: str | None = None) -> Array:
        """The named output, or the first one, for the model's one input."""
        [source, *_] = [given.name for given in self.session.get_inputs()]
        try:
            results = self.session.run(
                None if output is None else [output], {source: np.ascontiguousarray(values)}
            )
        except Exception as error:
            raise self._refusal(error) from error
        return np.asarray(results[0])

    def results(self, feeds: Mapping[str, Array]) -> tuple[Array, ...]:
        """All outputs, for inputs by name."""
        given = {name: np.asarray(value, order="C") for name, value in feeds.items()}
        try:
            found = self.session.run(None, given)
        except Exception as error:
            raise self._refusal(error) from error
        return tuple(np.asarray(result) for result in found)

    def _refusal(self, error: Exception) -> CannotCertify:
        return CannotCertify(
            f"{self.name}: onnxruntime cannot run the file, so that nothing tells whether the "
            f"network is the one deployed: {one_line(error)}"
        )
