"""The table at the end of a run, for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table
from rich.text import Text

from lipcert import heads
from lipcert.certificate import Certificate, failures
from lipcert.report.numbers import rounded_down, rounded_up, share
from lipcert.report.provenance import arithmetic, assurance, norms, threats

Row = tuple[str, str]


# Columns of a terminal below which the names of the rows are broken.
_NARROW = 76


def table(certificate: Certificate, *, width: int = 80) -> Table:
    """What was found, how sure it is, and against what, as a table of two columns for a terminal of
    ``width`` columns.

    For an ESTIMATE every result row says so, and none speaks of a certificate.
    """
    model, data = certificate.model["name"], certificate.data
    part = f", shard {data['shard']}" if data["shard"] else ""
    made = Table(
        title=Text(f"{model} on {data['name']} {data['split']}{part}"),
        show_header=False,
        title_justify="left",
    )
    if width < _NARROW:
        made.add_column(style="bold", max_width=max(12, width // 4))
    else:
        made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows(certificate):
        made.add_row(Text(name), Text(value))
    return made


def rows(certificate: Certificate) -> Iterator[Row]:
    """The table's rows, in order."""
    if said := failures(certificate.summary):
        yield "FAILED", said
    if what := heads.claim(certificate.options):
        yield "claim", what
    yield from _results(certificate)
    yield "verdicts", _verdicts(certificate.summary["verdicts"])
    if certificate.cascade:
        yield "decided by", "\n".join(map(_rung, certificate.cascade))
    yield "time", f"{certificate.seconds:.1f} s"
    yield "threat model", threats(certificate.threat_model)
    yield "assurance", assurance(certificate.assurance)
    yield "method", _method(certificate.options)
    if certificate.assurance.kind != "estimate":
        yield (
            "arithmetic",
            arithmetic(certificate.options, certificate.model, certificate.summary),
        )
    yield from _model(certificate.model)
    if names := certificate.data.get("class_names"):
        yield "classes", f"{len(names)}: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}"
    for note in certificate.notes:
        yield "note", note


def _results(certificate: Certificate) -> Iterator[Row]:
    summary = certificate.summary
    n = summary["n"]
    accuracy = heads.accuracy(certificate.options)
    yield heads.clean(certificate.options), share(summary["clean_correct"], n)
    if certificate.assurance.kind == "estimate":
        for eps, count in summary["estimated_count"].items():
            name = f"ESTIMATE: {accuracy} at eps {eps}"
            yield name, f"{share(count, n)}, bounds nothing"
        yield "ESTIMATE: radius", f"{_radii(summary['radius_estimate'])}, bounds nothing"
        return
    for eps, count in summary["certified_count"].items():
        upper = summary.get("upper_count", {}).get(eps)
        yield f"certified {accuracy} at eps {eps}", share(count, n, upper)
    yield "certified radius", _radii(summary["radius"])


def _radii(radii: dict[str, float | None]) -> str:
    mean, median = radii["mean"], radii["median"]
    if mean is None or median is None:
        return "none, as no sample is classified correctly"
    return f"mean {rounded_down(mean)}, median {rounded_down(median)} of the correct samples"


def _verdicts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def _rung(rung: dict[str, Any]) -> str:
    reached = f"{rung['decided']} of the {rung['samples']} that reached it"
    return f"{rung['rung']}: {reached}, {rung['seconds']:.1f} s in all"


def _method(options: dict[str, Any]) -> str:
    kind = {
        "auto": f"all bounds, cheap ones first, and an attack; effort {options['effort']}",
        "local": "local Lipschitz bounds",
        "global": "global Lipschitz bound",
    }
    dtype = f", in {options['dtype']}" if options.get("dtype", "float64") != "float64" else ""
    return f"{kind[options['method']]}{dtype}; {norms(options)}"


def _model(model: dict[str, Any]) -> Iterator[Row]:
    if model["stripped"]:
        yield "left out", f"{model['stripped']} at the end: the logits before it tell the class"
    check = model["cross_check"]
    found = f"largest relative difference {rounded_up(check['max_relative_difference'])}"
    yield "cross-check", f"{found} from onnxruntime on {check['samples']} samples"
    second = check["onnx2torch"]
    if second is None:
        yield "second reader", f"onnx2torch {check['onnx2torch_note']}"
    else:
        yield "second reader", f"largest relative difference {rounded_up(second)} from onnx2torch"
