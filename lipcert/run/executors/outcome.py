"""What becomes of a batch: its samples, or why it has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lipcert.certificate import Sample
from lipcert.errors import LipcertError

Certify = Callable[[list[int]], list[Sample]]

# What allocators say: Python's, torch's on a CPU, CUDA's and onnxruntime's; then what the libraries
# on a GPU say that cannot have the workspace they need, the last one where its first one fails.
_NO_MEMORY = (
    "out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory",
    "failed to allocate memory", "bad_alloc", "bad allocation", "cudaerrormemoryallocation",
    "_status_alloc_failed", "cufft_alloc_failed", "cublas_status_not_initialized",
    "cusolver_status_not_initialized",
)  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """Why a batch has no samples, without the frames of the exception, which hold its tensors;
    ``memory``: there was too little of it."""

    message: str
    memory: bool

    @classmethod
    def of(cls, error: Exception) -> Failure:
        first = (str(error).splitlines() or [""])[0][:200]
        kind = type(error).__name__
        memory = is_out_of_memory(error)
        said = f"{kind}: {first}" if first else kind
        return cls(f"out of memory: {said}" if memory else said, memory)


Outcome = list[Sample] | Failure


def attempt(certify: Certify, batch: list[int]) -> Outcome:
    """One batch, here and now. A ``LipcertError`` concerns the whole run and is passed on."""
    try:
        return certify(batch)
    except LipcertError:
        raise
    except Exception as error:
        failure = Failure.of(error)
    release_memory()
    return failure


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: Python's own error, or what an allocator or a library says."""
    if isinstance(error, MemoryError):
        return True
    library = type(error).__module__.startswith("onnxruntime")
    text = str(error).lower()
    return (isinstance(error, RuntimeError) or library) and any(one in text for one in _NO_MEMORY)


def release_memory() -> None:
    """Give a GPU's cached blocks back, so that a smaller batch does not find them fragmented."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
