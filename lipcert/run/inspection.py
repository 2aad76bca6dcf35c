"""What a model file holds and what its layers cost, as a plain record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lipcert.certification import Certifier
from lipcert.loading import inspect_operators, normalisation_found
from lipcert.options import Options
from lipcert.run.cost import cost_of, norms_told
from lipcert.run.environment import suitable_threads, threads
from lipcert.run.job import ModelSource, Preprocessing
from lipcert.run.model import open_model
from lipcert.run.progress import Watch
from lipcert.run.result import assurance

Record = dict[str, Any]


def operators_of(source: ModelSource, input_shape: Sequence[int] | None = None) -> list[Record]:
    """The nodes of an ONNX file, those of one operator, version and note together.

    ``bound`` says whether bounds know it exactly or enclose it; ``names`` are the nodes' own, or
    the torch modules they come from; ``products`` says what one sweep through all of them
    multiplies, and ``nodes`` the same of each, in order. Weights with a factory have no nodes to
    show before they are loaded: an empty list. Raises ``UsageError`` and ``CannotCertify`` where
    the file cannot be read.
    """
    if source.arch is not None:
        return []
    grouped: dict[tuple[object, ...], list[Record]] = {}
    for row in inspect_operators(source.path, source.output, input_shape):
        kind = (row.operator, row.domain, row.version, row.supported, row.bound, row.note)
        node = {"name": row.module or row.name, "products": row.products}
        grouped.setdefault(kind, []).append(node)
    names = ("operator", "domain", "version", "supported", "bound", "note")
    return [
        dict(zip(names, kind, strict=True))
        | {
            "count": len(nodes),
            "names": [node["name"] for node in nodes if node["name"]],
            "products": sum(node["products"] for node in nodes),
            "nodes": nodes,
        }
        for kind, nodes in grouped.items()
    ]


def inspect_model(
    source: ModelSource,
    options: Options | None,
    *,
    input_shape: Sequence[int] | None = None,
    watch: Watch | None = None,
) -> Record:
    """The model's shapes, its normalisation, what it costs, its operator norms and their product.

    ``cost`` is told from the graph alone, before anything is bounded: ``values`` and ``products``
    of one sweep through the network, ``bounds`` that ``--method auto`` takes, and the
    processor time of all shared norms together, in ``norm_seconds``.
    ``norms.layers`` are the norms between activations, ``norms.product`` an upper bound of the
    logits' Lipschitz constant for the model's own input, unless ``norms.assurance`` is ESTIMATE;
    without ``options`` there are none, nor for a network with joints, which no product of norms
    bounds; ``joints`` says where the first of each kind is.
    Raises ``UsageError`` and ``CannotCertify``.
    """
    watch = watch or Watch()
    watch.stage(f"reading the model {source.path}")
    model = open_model(source, Preprocessing(), image_shape=input_shape)
    network = model.loaded.network
    record = model.to_json() | {"normalisation": normalisation_found(network)}
    del record["preprocessing"]
    record["notes"] = list(model.loaded.notes)
    record["cost"] = cost_of(network, options)
    if network.joints:
        record["joints"] = network.joints_told
        record["notes"].append(
            f"it has joints ({record['joints']}): --method auto certifies it by random projections "
            "of its derivative; there is no product of norms, and no Lipschitz constant"
        )
    if options is None or network.joints:
        return record
    less = "--no-norms or --norms deterministic"
    watch.stage(norms_told(network, options, less, every=True))
    with threads(suitable_threads("cpu")):
        certifier = Certifier(network, options, samples=1)
        kind = assurance(options, certifier.global_failure_probability, ())
        norms = {
            "assurance": "ESTIMATE" if kind.kind == "estimate" else kind.kind,
            "failure_probability": kind.failure_probability,
            "layers": [asdict(layer) for layer in certifier.layer_norms],
            "product": certifier.product,
        }
    return record | {"norms": norms}
