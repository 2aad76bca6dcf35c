"""How a result came about: threat model, assurance, model, data, options, versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lipcert.certificate import Assurance
from lipcert.report.numbers import rounded_up
from lipcert.report.results import Results


def provenance(results: Results) -> Iterator[tuple[str, str]]:
    """Names and values, in the order in which a reader asks for them."""
    certificate = results.certificate
    options, data, model = certificate["options"], certificate["data"], certificate["model"]
    if results.what:
        yield "claim", results.what
    yield "threat model", threats(certificate["threat_model"])
    yield "assurance", assurance(Assurance(**certificate["assurance"]))
    if coins := certificate.get("coins"):
        seed = coins.get("seed")
        again = f"--seed {seed} repeats them" if seed else "each shard drew its own"
        yield "coins", f"{coins['assurance']}; {again}"
    if shards := certificate.get("shards"):
        yield "merged", f"of {len(shards)} shard{'s' * (len(shards) > 1)}"
    effort = f", effort {options['effort']}" if options["method"] == "auto" else ""
    if options.get("dtype", "float64") != "float64":
        effort += f", in {options['dtype']}"
    yield "method", f"{options['method']}{effort}, {norms(options)}"
    if not results.estimate:
        yield "arithmetic", arithmetic(options, model, results.summary)
    for name, digest in model["files"].items():
        yield "model", f"{name}, sha256 {digest}"
    yield "preprocessing", _preprocessing(model["preprocessing"])
    if model["stripped"]:
        yield "left out", f"{model['stripped']} at the end"
    check = model["cross_check"]
    difference = rounded_up(check["max_relative_difference"])
    yield "cross-check", f"{difference} from onnxruntime on {check['samples']} samples"
    yield "data", f"{data['source']}, {data['split']}, sha256 {data['sha256']}"
    if names := data.get("class_names"):
        yield "classes", f"{len(names)}: {', '.join(names[:12])}{', …' if len(names) > 12 else ''}"
    yield "samples", f"{data['chosen']} of {data['size']}, ids sha256 {data['indices_sha256']}"
    yield "options", f"sha256 {certificate['options_digest']}"
    versions = (f"{name} {value}" for name, value in certificate["environment"].items())
    yield "environment", ", ".join(versions)
    yield "time", f"{certificate['seconds']:.1f} s"
    for note in certificate["notes"]:
        yield "note", note


def threats(model: dict[str, str]) -> str:
    """Which points a certificate speaks of, in one sentence."""
    ball = f"{model['norm'].upper()}, eps in {model['space']}"
    return f"{ball}, only points that are images in [0,1]" if "domain" in model else ball


def assurance(found: Assurance) -> str:
    """How far the bounds can be trusted, in one sentence."""
    match found.kind:
        case "estimate":
            return "ESTIMATE (power iteration), bounds nothing"
        case "deterministic":
            return "deterministic: every norm is an upper bound"
        case _:
            most = rounded_up(found.failure_probability)
            return (
                "randomised: every norm of the run is an upper bound, but for a probability of at "
                f"most {most} over lipcert's own coins"
            )


def norms(options: dict[str, Any]) -> str:
    """Which norms; without a probability to fail none are randomised."""
    kind = options["norms"]
    if kind == "randomised" and not options["failure_probability"]:
        kind = "deterministic"
    return f"norms {kind}"


def arithmetic(
    options: Mapping[str, Any], model: Mapping[str, Any], summary: Mapping[str, Any]
) -> str:
    """Whether rounding is covered, in one sentence, and how much of the margins it took."""
    deployed: str = options["deployed"]
    if deployed == "real":
        return "covers exact real arithmetic only; the rounding of a deployed model is not covered"
    covered = f"covers the deployed {deployed} model, its rounding in any summation order included"
    if measured := model.get("summation"):
        covered = f"covers the {deployed} model {summation(measured)}"
    if deployed in ("float16", "bfloat16"):
        covered += ", sums accumulated in float32"
    found = summary.get("deployed_error")
    if found is None:
        return covered
    return f"{covered}: it took {rounded_up(found['median_share'])} of the margin in the median"


def summation(record: Mapping[str, Any]) -> str:
    """What a certificate holds for whose order of sums was measured."""
    layers = record["layers"]
    known = sum(layer["order"] == "measured" for layer in layers)
    return (
        f"only as {record['runtime']} {record['version']} runs it on {record['processor']} "
        f"(features {record['features']}), without graph optimisations, on one thread, one sample "
        f"at a time: the order of its sums was MEASURED there, in {known} of {len(layers)} layers; "
        "its rounding included"
    )


def _preprocessing(record: dict[str, Any]) -> str:
    given = (f"{name} {value}" for name, value in record.items() if value is not None)
    return ", ".join(given)
