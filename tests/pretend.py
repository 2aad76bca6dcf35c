"""A device that is not there: code for a GPU runs on the CPU, and what a GPU would mind is seen.

    with Pretend() as device:
        Certifier(network, options, samples=3, device=device.name)(pixels, labels, range(3))
    device.launches.most_common(10), device.waits.total()

A tensor of the device holds a tensor of the CPU, so every number is the CPU's, bit for bit. What an
operation would do to a GPU is told from its schema before it runs:

* a tensor of the CPU beside one of the device is refused, as CUDA refuses it, but for what torch
  allows: numbers of no dimension in element-wise operations, indices, copies;
* ``waits`` counts where the host has to wait for the device: copies to the host, sizes that follow
  from the data, values that are asked for, and solvers that look at their result;
* ``launches`` counts kernels: none for a view, one for most operations, several for those that are
  made of several (``_KERNELS``, rough figures).

Both are counted by the innermost line of lipcert that asked. Not seen: a GPU's own rounding and
order of sums, its algorithms, memory and time, and more than one device.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_BACKEND = "pretend"
# Of torch's own sources for CUDA, to the nearest few.
_KERNELS = {
    "sort": 6, "argsort": 6, "topk": 4, "nonzero": 3, "_linalg_eigh": 12, "linalg_cholesky_ex": 6,
    "bincount": 5, "convolution": 2, "convolution_backward": 3, "_unique2": 8, "isin": 3,
    "equal": 2, "cumsum": 2, "scatter_reduce": 2, "masked_select": 3, "index_add": 2,
    "repeat_interleave": 4,
}  # fmt: skip
_WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "_linalg_eigh", "_linalg_svd", "_unique2",
    "unique_dim", "unique_consecutive", "repeat_interleave", "equal", "is_nonzero", "bincount",
}  # fmt: skip
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_COPIES = {"copy_", "_to_copy"}
# Beside element-wise operations these take a number that lies on the CPU.
_TAKE_NUMBERS = {"where", "masked_fill", "masked_fill_", "fill", "fill_"}
_NO_KERNEL = {"detach", "alias", "_unsafe_view", "lift_fresh", "_reshape_alias", "lift"}


class Mixed(RuntimeError):
    """Tensors of two devices in one operation."""


@dataclass(frozen=True)
class Operation:
    """What the schema of an operation says: its name, whether its result is a view, whether it is
    element-wise, and whether it writes to its first argument."""

    name: str
    view: bool
    pointwise: bool
    writes: tuple[str, ...]

    @staticmethod
    @lru_cache(None)
    def of(func: Any) -> Operation:
        schema = func._schema
        name = schema.name.split("::")[1]
        results = [one.alias_info for one in schema.returns if one.alias_info is not None]
        changed = [
            a for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write
        ]
        writes = tuple(a.name for a in changed) if any(one.is_write for one in results) else ()
        view = name in _NO_KERNEL or any(not one.is_write for one in results)
        return Operation(name, view, torch.Tag.pointwise in func.tags, writes)


class PretendTensor(torch.Tensor):
    """``held``: the numbers, on the CPU."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> PretendTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, layout=held.layout, device=f"{_BACKEND}:0",
        )  # fmt: skip
        made.held = held.detach()
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert Pretend.present is not None, "a tensor of the device outlived it"
        return Pretend.present.run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"{_BACKEND}({self.held!r})"

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {_BACKEND}:0 device type tensor to numpy: use Tensor.cpu()")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, *, dtype: Any = None, **more: Any) -> torch.Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=self.device, **more)


class Pretend(TorchDispatchMode):
    """The device while the context lasts; one at a time."""

    present: ClassVar[Pretend | None] = None
    _registered: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        if not Pretend._registered:
            module: Any = backend_registration._DummyBackendModule()
            module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
            backend_registration._setup_privateuseone_for_python_backend(
                rename=_BACKEND, backend_module=module
            )
            Pretend._registered = True
        self.name = f"{_BACKEND}:0"
        self.reset()

    def reset(self) -> None:
        """Count from here on."""
        self.launches, self.waits = Counter[str](), Counter[str]()

    def __enter__(self) -> Pretend:
        Pretend.present = self
        future = torch.__future__
        self._before = (
            torch.tensor, torch.as_tensor, torch.linalg.eigvalsh,
            future.get_overwrite_module_params_on_conversion(),
            torch._C._is_multithreading_enabled(),
        )  # fmt: skip
        future.set_overwrite_module_params_on_conversion(True)
        # Else a backward pass runs in a thread of the device's own, where no caller is seen.
        torch._C._set_multithreading_enabled(False)
        # Python's numbers become tensors below any mode: on the CPU, from where they are moved.
        torch.tensor, torch.as_tensor = map(_moved, self._before[:2])  # type: ignore[assignment]
        torch.linalg.eigvalsh = _eigenvalues
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.tensor, torch.as_tensor, torch.linalg.eigvalsh, overwrite, threads = self._before
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
        torch._C._set_multithreading_enabled(threads)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """An operation, of the device's tensors or of the CPU's."""
        operation = Operation.of(func)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        own = [tensor for tensor in given if isinstance(tensor, PretendTensor)]
        foreign = [tensor for tensor in given if not isinstance(tensor, PretendTensor)]
        there = bool(own)
        if kwargs.get("device") is not None:
            there = torch.device(kwargs["device"]).type == _BACKEND
            kwargs = {**kwargs, "device": torch.device("cpu")}
        if not (own or there):
            return func(*args, **kwargs)
        if own:
            _refuse(operation, args, foreign)
        self._count(operation, args, own, foreign, there=there)
        bare, named = tree_map_only(PretendTensor, lambda tensor: tensor.held, (args, kwargs))
        found = func(*bare, **named)
        if operation.writes:
            changed = [kwargs[name] for name in operation.writes if name in kwargs] or [args[0]]
            return changed[0] if len(changed) == 1 else tuple(changed)
        return tree_map_only(torch.Tensor, PretendTensor, found) if there else found

    def _count(
        self, operation: Operation, args: Any, own: list[Any], foreign: list[Any], *, there: bool
    ) -> None:
        line, name = _line(), operation.name
        waits = _waits(operation, args, own, foreign, there=there)
        self.waits[line] += waits
        if not operation.view:
            kernels = _KERNELS.get(name, 1)
            if name.startswith("convolution") and not torch.backends.cudnn.enabled:
                # torch's own: for every image and group its columns, then a product.
                kernels = 2 * len(args[0]) * next(a for a in reversed(args) if type(a) is int)
            self.launches[line] += kernels + (3 * waits if name in _INDEXED else 0)


def _refuse(operation: Operation, args: Any, foreign: list[torch.Tensor]) -> None:
    if operation.name in _COPIES:
        return
    if operation.name in _INDEXED:
        foreign = [tensor for tensor in foreign if all(tensor is not one for one in args[1])]
    numbers = operation.pointwise or operation.name in _TAKE_NUMBERS | _INDEXED
    for tensor in foreign:
        written = bool(operation.writes) and tensor is args[0]
        if tensor.dim() or not numbers or written:
            raise Mixed(
                f"{operation.name}: a tensor of the CPU, {tuple(tensor.shape)}, beside one of the "
                f"device, at {_line()}"
            )


def _waits(operation: Operation, args: Any, own: Any, foreign: Any, *, there: bool) -> int:
    """How often the host waits."""
    name = operation.name
    if name == "_to_copy":
        return int(bool(foreign) or not there)
    if name == "copy_":
        across = bool(own) and bool(foreign)
        return int(across and bool(foreign[0].dim() or foreign[0] is args[0]))
    if name not in _INDEXED:
        return int(name in _WAITS)
    indices = [index for index in args[1] if isinstance(index, torch.Tensor)]
    masks = sum(index.dtype in (torch.bool, torch.uint8) for index in indices)
    if len(args) > 2 and args[2].numel() == 1 and masks == len(indices):
        masks = 0  # filled with one number, it needs no count
    return masks + sum(not isinstance(index, PretendTensor) for index in indices)


def _line() -> str:
    frame: Any = sys._getframe(1)
    while frame is not None:
        _, found, rest = frame.f_code.co_filename.rpartition("/lipcert/")
        if found and "/site-packages/" not in rest and "/tests" not in rest:
            return f"{rest}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


def _eigenvalues(matrix: torch.Tensor, UPLO: str = "L") -> torch.Tensor:
    # Of a subclass torch would find the vectors too, and values with other digits.
    return torch.ops.aten._linalg_eigh(matrix, UPLO, matrix.requires_grad)[0]


def _moved(make: Any) -> Any:
    def made(data: Any, *more: Any, device: Any = None, **named: Any) -> torch.Tensor:
        gradient = named.pop("requires_grad", False)
        if isinstance(data, PretendTensor):
            tensor = data.to(dtype=more[0] if more else named.get("dtype"))
        else:
            tensor = make(data, *more, **named)
        tensor = tensor if device is None else tensor.to(device)
        return tensor.requires_grad_() if gradient else tensor

    return made


def lines(counted: Counter[str], per: int = 1, most: int = 15) -> Iterator[str]:
    """The lines that ask most, for people: how often for each of ``per``."""
    for line, count in (+counted).most_common(most):
        yield f"{count / per:10.1f}  {line}"
