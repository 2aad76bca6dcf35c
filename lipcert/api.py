"""The library: ``lipcert.load`` and ``lipcert.certify``, the same road as the command line."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from rich.console import Console

from lipcert.arguments import in_python
from lipcert.coins import parse_seed
from lipcert.data import Dataset, Expected, load_dataset, only, relabelled
from lipcert.data.arrays import to_dataset
from lipcert.data.collect import as_array, collect
from lipcert.data.layouts import Layout
from lipcert.errors import UsageError
from lipcert.loading import load_module
from lipcert.options import Epsilon, Options, OptionValues
from lipcert.result import Result
from lipcert.run import (
    Execution,
    Model,
    ModelSource,
    Preprocessing,
    certify_dataset,
    open_model,
)
from lipcert.run.intervals import IntervalResult, dataset_of, enclose
from lipcert.run.job import Channels, Running
from lipcert.run.progress import ConsoleWatch, Watch


class CertifyOptions(OptionValues, Running):
    """What ``certify`` takes beside model, data and radii; defaults are those of ``Options`` and of
    ``Execution``."""


@in_python
def load(
    path: str | PathLike[str] | torch.nn.Module,
    *,
    example_input: Any = None,
    weights: str | PathLike[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    layout: str | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
    channels: Channels | None = None,
    arch: str | None = None,
    image_shape: Sequence[int] | None = None,
    output: str | None = None,
) -> Model:
    """Load a pretrained classifier.

    ``path``: an ONNX file, where ``weights`` (a .safetensors file) may replace its own; or a
    .safetensors file with ``arch``, the ``package.module:factory`` of the model; or a
    ``torch.nn.Module`` with ``example_input``, an array or tensor (1, C, H, W) of any values, which
    is exported to ONNX in evaluation mode and left as it is.
    ``mean``, ``std`` (one a channel or feature), ``layout`` (of the model's input, such as
    ``HWC``), ``value_range`` (the model's numbers for 0 and 1 of the data, black and white of
    images) and ``channels`` (``"bgr"`` for a model that reads blue first; ``"rgb"`` and ``"bgr"``
    repeat gray images for a model of three channels) say what the model expects; they become part
    of it, so that eps is always in the unit of the data, for images pixels of [0, 1].
    ``image_shape``: (C, H, W), for ``arch`` alone. ``output`` names one of several. Raises
    ``UsageError`` and ``CannotCertify``.
    """
    if not isinstance(path, str | PathLike | torch.nn.Module):
        kind = path.__name__ if isinstance(path, type) else type(path).__name__
        raise UsageError(
            f"path: give a file or a torch.nn.Module, not {kind}; weights go into a module first"
        )
    if channels not in (None, "rgb", "bgr"):
        raise UsageError(f"channels {channels!r}: choose 'rgb' or 'bgr'")
    preprocessing = Preprocessing(
        mean=_statistics("mean", mean),
        std=_statistics("std", std),
        layout=layout,
        value_range=(float(value_range[0]), float(value_range[1])),
        channels=channels,
    )
    if isinstance(path, torch.nn.Module):
        shape = _example_shape(path, example_input, weights, arch, image_shape)
        return Model(load_module(path, shape), preprocessing)
    if example_input is not None:
        raise UsageError(f"example_input: goes with a torch.nn.Module, not with the file {path}")
    source = ModelSource(Path(path), None if weights is None else Path(weights), arch, output)
    return open_model(source, preprocessing, image_shape=image_shape)


def _statistics(name: str, values: Sequence[float] | None) -> tuple[float, ...] | None:
    try:
        return None if values is None else tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{name} {values!r}: give one number a channel or feature, such as (0.5,)"
        ) from error


def _example_shape(
    module: torch.nn.Module, example: Any, weights: Any, arch: Any, image_shape: Any
) -> tuple[int, ...]:
    """The shape of one sample. Raises ``UsageError``, naming the argument at fault."""
    name = type(module).__name__
    for argument, value in (("weights", weights), ("arch", arch), ("image_shape", image_shape)):
        if value is not None:
            raise UsageError(f"{argument}: goes with a file; the module {name} has all of it")
    if example is None:
        raise UsageError(
            f"example_input: give one with the module {name}, such as torch.zeros(1, 3, 32, 32)"
        )
    shape = tuple(int(extent) for extent in np.shape(example))
    if len(shape) < 2 or shape[0] != 1:
        raise UsageError(
            f"example_input: has the shape {shape}; give one sample with its batch axis, such as "
            "torch.zeros(1, 3, 32, 32)"
        )
    return shape[1:]


@in_python
def certify(
    model: Model,
    images: Any,
    labels: Any = None,
    eps: float | str | Iterable[float | str] = (),
    *,
    data_range: tuple[float, float] | None = None,
    data_layout: Layout = "auto",
    progress: bool = False,
    **options: Unpack[CertifyOptions],
) -> Result:
    """Certify that small L2 changes of ``images`` do not change the model's prediction.

    ``images``: (N, C, H, W), floats in [0, 1] or uint8, whose unit is a pixel of [0, 1]; or (N,
    features), (N, C, length) or (N, C, D, H, W), which keep the numbers that they hold as their
    unit. An array or a tensor, on any device, with gradients or without. ``labels``: (N,) or (N, 1)
    whole numbers, or one-hot. Without ``labels``, ``images`` is what has both: what ``--data``
    takes, as text or a path; a torch Dataset or DataLoader; a mapping of arrays; or what
    ``lipcert.data.load_dataset`` returns. ``data_range``: the numbers of the data that become 0 and
    1, black and white of images; ``data_layout``: the order of their axes, such as ``"nhwc"``,
    where shape and model do not tell. ``eps``: one radius or several, in that unit, as numbers
    or as text such as ``"36/255"``. ``seed``: None for coins from fresh entropy of the system; a
    number, or the text that a certificate records, to repeat a run. The other options are those of
    ``lipcert certify``; with ``output`` the results and the journal are written there. ``progress``
    shows a bar on stderr.
    ``workers``: processes that share the batches, None for as many as suit; ``cluster``: a ray
    cluster that has them instead, ``auto`` or its address.

    The ``Result`` has ``samples`` in the order of ``images``, ``summary`` and ``certificate``,
    those that the command line gives, and ``save``, ``to_pandas``, ``gate``, ``audit`` and
    ``report``. Raises ``UsageError`` and ``CannotCertify``.
    """
    _check_names(options)
    if not isinstance(model, Model):
        raise UsageError(f"model: give what lipcert.load returns, not {type(model).__name__}")
    dataset = _dataset(model, images, labels, data_range, data_layout)
    how = Options(
        eps=tuple(Epsilon.parse(radius) for radius in _radii(eps)),
        **_chosen(options, OptionValues, seed=_seed),
    )
    dataset = only(dataset, how.only_classes)
    execution = Execution(**_chosen(options, Running, output=_path))
    watch = ConsoleWatch(Console(stderr=True)) if progress else Watch()
    found = certify_dataset(model, dataset, np.arange(len(dataset)), how, execution, watch)
    return Result(found.certificate, found.samples)


@in_python
def intervals(
    model: Model,
    inputs: Any,
    eps: float | str | Iterable[float | str],
    *,
    targets: Any = None,
    tolerance: float | None = None,
    progress: bool = False,
    **options: Unpack[OptionValues],
) -> IntervalResult:
    """Bound every output of a model of real outputs over the balls of radius ``eps`` around inputs.

    ``inputs``: (N, C, H, W), (N, features), … as ``certify`` takes images; ``eps`` likewise, in
    their unit. With ``targets``, (N, outputs) or (N,) numbers, and a ``tolerance``: at which eps
    every output stays within the tolerance of its target, and the largest radius found for which
    that is proven. The options are those of ``lipcert interval``.

    The ``IntervalResult`` has ``samples``, each with ``intervals`` by eps as written, and
    ``to_json``. Raises ``UsageError`` and ``CannotCertify``.
    """
    for name in options:
        if name not in OptionValues.__annotations__:
            raise TypeError(f"intervals() got an unexpected keyword argument {name!r}")
    given: dict[str, Any] = {**options, "seed": _seed(options.get("seed"))}
    how = Options(eps=tuple(Epsilon.parse(radius) for radius in _radii(eps)), **given)
    dataset = dataset_of(as_array(inputs, "inputs"), "inputs", model)
    wanted = None if targets is None else as_array(targets, "targets")
    watch = ConsoleWatch(Console(stderr=True)) if progress else Watch()
    return enclose(
        model, dataset, range(len(dataset)), how, targets=wanted, tolerance=tolerance, watch=watch
    )


def _radii(eps: Any) -> list[str]:
    """Each radius as text: of numbers, texts, or whatever holds some of them."""
    if hasattr(eps, "tolist"):  # an array or a tensor, of any number of axes
        eps = np.ravel(eps.tolist()).tolist()
    if isinstance(eps, str):
        return eps.split(",")
    return [str(radius) for radius in eps] if isinstance(eps, Iterable) else [str(eps)]


def _chosen(options: CertifyOptions, group: Any, **convert: Callable[[Any], Any]) -> dict[str, Any]:
    """Those of one group, as its record takes them."""
    return {
        name: convert.get(name, _same)(value)
        for name, value in options.items()
        if name in group.__annotations__
    }


def _same(value: Any) -> Any:
    return value


def _seed(seed: int | str | None) -> int | None:
    return parse_seed(seed) if isinstance(seed, str) else seed


def _path(path: str | PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)


def _check_names(options: CertifyOptions) -> None:
    """As Python itself says it of a parameter that is not there."""
    known = [*CertifyOptions.__annotations__, "data_range", "data_layout", "progress"]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f"; did you mean {near[0]}" if near else ""
            raise TypeError(f"certify() got an unexpected keyword argument {name!r}{meant}")


def _dataset(
    model: Model, images: Any, labels: Any, value_range: tuple[float, float] | None, layout: Layout
) -> Dataset:
    expected = Expected(tuple(model.loaded.network.in_shape[1:]), model.classes)
    if labels is not None:
        if isinstance(images, torch.utils.data.DataLoader | torch.utils.data.Dataset | Dataset):
            raise UsageError(f"labels: {type(images).__name__} has its own; leave labels out")
        return to_dataset(
            "arrays", "given", as_array(images, "images"), as_array(labels, "labels"),
            source="images", layout="nchw" if layout == "auto" else layout, value_range=value_range,
            expected=expected,
        )  # fmt: skip
    if isinstance(images, np.ndarray | torch.Tensor):
        raise UsageError("labels: give them with an array of images, one a sample")
    if isinstance(images, str | PathLike):
        found = load_dataset(str(images), layout=layout, value_range=value_range, expected=expected)
    else:
        collected = collect(images, "images")
        found = collected if isinstance(collected, Dataset) else to_dataset(
            "arrays", "given", collected.images, collected.labels, source="images",
            layout=layout, value_range=value_range, expected=expected, names=collected.names,
            classes=len(collected.names) or None,
        )  # fmt: skip
    return relabelled(found, outputs=model.classes)
