"""The model and the data that a certificate is about: found, and held against its digests."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from lipcert.audit.claims import Claims
from lipcert.data import Dataset, load_dataset, mapped
from lipcert.data.dataset import ValueRange
from lipcert.data.layouts import Layout
from lipcert.data.load import KNOWN
from lipcert.errors import CannotCertify, UsageError
from lipcert.loading.factory import from_weights
from lipcert.loading.model import affordable
from lipcert.loading.onnx_file import open_onnx
from lipcert.loading.weights import replace_weights

Array = NDArray[Any]

# Of sums in another order.
_SLACK = 1e-9
# A name that leads into no other folder.
_PLAIN = re.compile(r"\w[\w. -]*")


@dataclass(frozen=True)
class Sources:
    """Where to look, as given; what is not given is sought where the certificate says."""

    model: Path | None = None
    weights: Path | None = None
    arch: str | None = None
    data: str | None = None
    data_dir: Path | None = None
    data_layout: Layout = "auto"
    data_range: ValueRange | None = None
    labels: Path | None = None
    offline: bool = False


def find_model(claims: Claims, sources: Sources, image_shape: tuple[int, ...]) -> onnx.ModelProto:
    """The model whose files have the digests that the certificate records.

    Raises ``UsageError`` where it is not found, ``CannotCertify`` where it is another one.
    """
    files: Mapping[str, str] = claims.certificate["model"]["files"]
    main = next(iter(files))
    path = sources.model or _nearby(claims, main)
    for name, digest in files.items():
        if name == main:
            file = path
        elif sources.weights is not None and name.endswith(".safetensors"):
            file = sources.weights
        else:
            file = _within(path.parent, name, claims)
        _check_digest(file, digest, claims)
    if sources.arch is not None:
        found = affordable(from_weights(sources.arch, path, image_shape)[0], path.name)
        return _as_recorded(claims, *found)
    if path.suffix == ".safetensors":
        raise UsageError(f"{path.name}: weights alone are no model; give --arch as for certify")
    model = open_onnx(path).model
    for name in files:
        if name != main and name.endswith(".safetensors"):
            weights = sources.weights or _within(path.parent, name, claims)
            replace_weights(model, weights, path.name)
    record = claims.certificate["model"]
    # The shape of the file's own input, in its own order.
    layout = "CHW" if len(record["input_shape"]) == 4 else None
    shape = record["input_shape"][1:]
    output = record.get("output")
    if output is not None and output not in {value.name for value in model.graph.output}:
        raise CannotCertify(f"{claims.path}: names the output {output!r}, which {path} has not")
    found = affordable(model, path.name, output, shape, layout)
    return _as_recorded(claims, *found)


def _as_recorded(
    claims: Claims, model: onnx.ModelProto, facts: Mapping[str, Any]
) -> onnx.ModelProto:
    """The model; ``CannotCertify`` unless it is what the certificate says of it."""
    recorded = claims.certificate["model"]
    for name, found in facts.items():
        if recorded[name] != found:
            raise CannotCertify(
                f"{claims.path}: at $.model.{name}: is {recorded[name]}, of a model with {found}; "
                "certify again"
            )
    return model


def find_data(claims: Claims, sources: Sources) -> Dataset:
    """The dataset whose arrays have the digest that the certificate records; raises likewise."""
    data = claims.certificate["data"]
    spec = sources.data or data["name"]
    if sources.data is None and spec not in KNOWN:
        raise UsageError(
            f"{claims.path}: was made on {data['source']}; say where that is with --data"
        )
    if not (isinstance(data["split"], str) and _PLAIN.fullmatch(data["split"])):
        raise CannotCertify(f"{claims.path}: names the split {data['split']!r}, which is none")
    # How the data were read stands in the certificate, but for published sets and folders.
    reading = dict(data.get("reading", {}))
    labels, value_range = reading.pop("labels", None), reading.pop("value_range", None)
    layout = reading.pop("layout", "auto")
    if spec != data["name"] and spec in KNOWN:
        raise CannotCertify(
            f"{spec}: is not the data of {claims.path}, which was made on {data['source']}; name "
            "that with --data"
        )
    found = load_dataset(
        spec,
        split=data["split"],
        data_dir=sources.data_dir,
        offline=sources.offline,
        layout=sources.data_layout if sources.data_layout != "auto" else layout,
        value_range=sources.data_range or (tuple(value_range) if value_range else None),
        labels=sources.labels,
        **reading,
    )
    if labels is not None:
        found = mapped(found, {int(label): new for label, new in labels.items()}, data["classes"])
    if _digest(found) != data["sha256"]:
        raise CannotCertify(
            f"{found.source}: is not the data of {claims.path}: sha256 {_digest(found)}, recorded "
            f"{data['sha256']}; name the right data with --data"
        )
    _check_unit(claims, found)
    return found


def _check_unit(claims: Claims, found: Dataset) -> None:
    """Raises ``CannotCertify`` where the certificate measures the data otherwise than they are."""
    space, reach = claims.certificate["threat_model"]["space"], found.reach
    if found.unit != space:
        raise CannotCertify(
            f"{claims.path}: measures radii in {space}, but {found.source} is in {found.unit}; if "
            "it was read otherwise, say so with --data-layout and --data-range"
        )
    if reach is None:
        return
    due = max(reach, 2 * float(claims.eps[claims.largest]))
    if not math.isclose(claims.certificate["data"]["reach"], due, rel_tol=_SLACK):
        recorded = claims.certificate["data"]["reach"]
        raise CannotCertify(f"{claims.path}: records the reach {recorded}, the data give {due}")


def pixels(dataset: Dataset, index: int) -> Array:
    """One sample in float32, images as numbers in [0, 1]."""
    stored: Array = dataset.images[index]
    return stored.astype(np.float32) / np.float32(255) if stored.dtype == np.uint8 else stored


def _nearby(claims: Claims, name: str) -> Path:
    for folder in (Path(), claims.path.parent, claims.path.resolve().parent.parent):
        file = _within(folder, name, claims)
        if file.is_file():
            return file
    raise UsageError(
        f"{claims.path}: is for {name}, which lies neither here nor beside it; name it with --model"
    )


def _within(folder: Path, name: str, claims: Claims) -> Path:
    """A file that the certificate names, in the folder or below it; ``CannotCertify`` for any other
    place, which may be anyone's."""
    parts = name.replace("\\", "/").split("/")
    plain = not {"", ".", ".."} & set(parts) and not {":", "\0"} & set(name)
    if plain and (folder / name).resolve().is_relative_to(folder.resolve()):
        return folder / name
    raise CannotCertify(
        f"{claims.path}: names the file {name!r}, which lies elsewhere or is a link to elsewhere, "
        "where nothing is opened for a certificate: give --model or --weights"
    )


def _check_digest(file: Path, digest: str, claims: Claims) -> None:
    if not file.is_file():
        raise UsageError(f"{file}: there is no such file; {claims.path} needs it")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != digest:
        raise CannotCertify(
            f"{file}: is not the file that {claims.path} is about: sha256 {found}, recorded "
            f"{digest}; name the right one with --model or --weights"
        )


def _digest(dataset: Dataset) -> str:
    """Of dtype, shape and values of the images, then of the labels, little-endian."""
    digest = hashlib.sha256()
    for array in (dataset.images, dataset.labels):
        digest.update(f"{array.dtype.newbyteorder('<').str} {array.shape}\n".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()
