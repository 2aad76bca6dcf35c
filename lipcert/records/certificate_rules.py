"""How a certificate fits its samples and itself.

Every rule tells what is wrong, or None; its docstring is what it demands. All figures are computed
from the samples once more, by lines that share nothing with those that wrote them.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Any

from lipcert.certificate import OWN, PIXELS, RANGE, threat_model
from lipcert.errors import CannotCertify
from lipcert.records.frame import Frame
from lipcert.records.sample_rules import radius_of, reached, right
from lipcert.records.strict_json import Record

Samples = Sequence[Record]
Rule = Callable[[Record, Samples, Frame], str | None]

# The layouts of images, as ``data.reading`` names them; all others are of other kinds of data.
_IMAGES = {"nchw", "nhwc", "nhw", "flat"}
# Of sums in another order.
_SLACK = 1e-9
# Probabilities are rounded upwards as they are added.
_PROBABILITY_SLACK = 1e-6


def check_certificate(certificate: Record, samples: Samples, frame: Frame, where: str) -> None:
    """Raises ``CannotCertify`` that begins with ``where`` for what no run writes."""
    for rule in CERTIFICATE_RULES:
        if said := rule(certificate, samples, frame):
            raise CannotCertify(f"{where}: cannot be: {said}")


def options_have_their_digest(certificate: Record, _: Samples, frame: Frame) -> str | None:
    """``options_digest`` is the digest of the options."""
    if certificate["options_digest"] != frame.options.digest:
        return "options_digest is not the digest of the options"
    return None


def is_of_one_version(certificate: Record, _: Samples, __: Frame) -> str | None:
    """The version is that of the environment."""
    found, there = certificate["lipcert"], certificate["environment"]["lipcert"]
    return None if found == there else f"lipcert {found} in an environment with lipcert {there}"


def holds_against_its_threat_model(certificate: Record, _: Samples, frame: Frame) -> str | None:
    """The threat model is the one that the options ask for, in some unit; in pixels where only
    images count."""
    found, images = certificate["threat_model"], frame.options.pixel_domain
    space = PIXELS if images else found["space"]
    if found != threat_model(pixel_domain=images, space=space):
        return f"threat_model is {found}, which its options do not ask for"
    return None


def is_in_the_unit_of_its_data(certificate: Record, _: Samples, __: Frame) -> str | None:
    """Images are in pixels, other data in the range that was declared, else in their own unit; only
    of that it is said how far two samples can be apart."""
    space, data = certificate["threat_model"]["space"], certificate["data"]
    reading = data.get("reading", {})
    if (space == OWN) != ("reach" in data):
        has = "a" if "reach" in data else "no"
        return f"the data are in {space}, with {has} reach"
    if "layout" in reading:
        other = RANGE if "value_range" in reading else OWN
        due = PIXELS if reading["layout"] in _IMAGES else other
        if space != due:
            return f"data of layout {reading['layout']} are in {due}, not in {space}"
    if "value_range" in reading and not reading["value_range"][0] < reading["value_range"][1]:
        return f"no range is {reading['value_range']}"
    return None


def maps_labels_to_classes(certificate: Record, _: Samples, frame: Frame) -> str | None:
    """What labels are sent to are classes, for one of them at least."""
    sent = certificate["data"].get("reading", {}).get("labels")
    if sent is not None and min(sent.values()) >= frame.classes:
        return f"labels are sent to {min(sent.values())} and above, of {frame.classes} classes"
    return None


def assures_what_it_may(certificate: Record, samples: Samples, frame: Frame) -> str | None:
    """The kind of assurance follows from the options; the samples' failure probabilities sum to no
    more than the one stated, which is at most the one asked for."""
    kind, stated = certificate["assurance"]["kind"], certificate["assurance"]["failure_probability"]
    options = frame.options
    if (kind == "estimate") != frame.estimate:
        return f"assurance is {kind}, with norms {options.norms}"
    if kind != "estimate" and (kind == "randomised") != (stated > 0):
        return f"assurance is {kind}, with a failure probability of {stated}"
    if kind == "randomised" and options.deterministic:
        return "assurance is randomised, of norms that are deterministic"
    kinds = {layer["assurance"] for layer in certificate.get("layers", ())}
    if kind == "deterministic" and "randomised" in kinds:
        return "assurance is deterministic, of layers that are randomised"
    if stated > options.failure_probability * (1 + _PROBABILITY_SLACK):
        return f"failure probability {stated}, above the {options.failure_probability} asked for"
    spent = math.fsum(sample["failure_probability"] for sample in samples)
    if not frame.estimate and spent > stated * (1 + _PROBABILITY_SLACK):
        return f"the samples' failure probabilities sum to {spent}, above the {stated} stated"
    return None


def lists_the_samples_chosen(certificate: Record, samples: Samples, frame: Frame) -> str | None:
    """Every sample of the run, or of the shard, is listed once, in the order whose digest is
    recorded."""
    data = certificate["data"]
    if data["chosen"] > data["size"]:
        return f"{data['chosen']} samples were chosen of {data['size']}"
    number, count = map(int, (data["shard"] or "1/1").split("/"))
    if not 1 <= number <= count:
        return f"there is no shard {data['shard']}"
    due = len(range(number - 1, data["chosen"], count))
    if len(samples) != due:
        return f"{len(samples)} samples are listed, and {due} were chosen"
    if not samples:
        return "no sample is listed"
    indices = [sample["index"] for sample in samples]
    index, times = Counter(indices).most_common(1)[0]
    if times > 1:
        return f"sample {index} is listed {times} times"
    content = b"".join(one.to_bytes(8, "little") for one in indices)
    if data["shard"] is None and hashlib.sha256(content).hexdigest() != data["indices_sha256"]:
        return "indices_sha256 is not the digest of the samples listed"
    return None


def summarises_its_samples(certificate: Record, samples: Samples, frame: Frame) -> str | None:
    """Every figure of the summary is that of the samples, and there is no other."""
    return differing("summary", certificate["summary"], _summary(samples, frame))


def accounts_for_its_cascade(certificate: Record, samples: Samples, _: Frame) -> str | None:
    """Every rung is listed, with the samples that went through it, what it decided, and its
    seconds."""
    found = {rung["rung"]: rung for rung in certificate.get("cascade", ())}
    if len(found) != len(certificate.get("cascade", ())):
        return "a rung of the cascade is listed twice"
    names = {name for sample in samples for name in sample.get("rungs", ())}
    expected = {
        name: {
            "rung": name,
            "samples": sum(name in sample.get("rungs", ()) for sample in samples),
            "decided": sum(sample.get("decided_by") == name for sample in samples),
            "seconds": math.fsum(sample.get("rungs", {}).get(name, 0.0) for sample in samples),
        }
        for name in names
    }
    return differing("cascade", found, expected)


def counts_its_eliminated_neurons(certificate: Record, samples: Samples, _: Frame) -> str | None:
    """A layer's share of eliminated neurons is the mean over the samples that say so; none
    eliminates more than the layer has."""
    layers = certificate.get("layers", ())
    counts = [sample["eliminated"] for sample in samples if sample.get("eliminated")]
    if any(len(count) > len(layers) for count in counts):
        return "a sample has eliminated neurons of more layers than there are"
    for number, layer in enumerate(layers):
        known = [count[number] for count in counts if number < len(count)]
        neurons = layer["neurons"]
        if any(count > neurons for count in known):
            return f"{max(known)} of the {neurons} neurons of layer {number} are eliminated"
        share = sum(known) / (len(known) * neurons) if known else None
        if said := differing(f"layers[{number}].eliminated", layer["eliminated"], share):
            return said
    return None


def is_merged_of_all_its_shards(certificate: Record, _: Samples, __: Frame) -> str | None:
    """What was merged is whole, of shards 1 to n, each once and in order; it fails with no less
    than the sum of their probabilities, and took the sum of their seconds."""
    shards, coins = certificate.get("shards"), certificate.get("coins")
    if shards is None:
        return "its coins have no seed" if coins and "seed" not in coins else None
    if certificate["data"]["shard"] is not None:
        return "a shard is merged of shards"
    names = [shard["shard"] for shard in shards]
    if names != [f"{number}/{len(shards)}" for number in range(1, len(shards) + 1)]:
        return f"it is merged of shards {', '.join(names[:8])}"
    stated = certificate["assurance"]["failure_probability"]
    due = math.fsum(shard["failure_probability"] for shard in shards)
    if stated < due * (1 - _PROBABILITY_SLACK):
        return f"failure probability {stated}, while its shards state {due} together"
    seconds = math.fsum(shard["seconds"] for shard in shards)
    return differing("seconds", certificate["seconds"], seconds)


def check_claims(certificate: Record, spent: float, frame: Frame, where: str) -> None:
    """What can be said of a certificate by itself and by what its samples ``spent`` of the failure
    probability. Raises ``CannotCertify`` that begins with ``where``."""
    for rule in CLAIMS:
        if said := rule(certificate, [{"failure_probability": spent}], frame):
            raise CannotCertify(f"{where}: cannot be: {said}")


# Those that need no more of the samples than what they spent.
CLAIMS: tuple[Rule, ...] = (
    options_have_their_digest,
    is_of_one_version,
    holds_against_its_threat_model,
    is_in_the_unit_of_its_data,
    maps_labels_to_classes,
    assures_what_it_may,
    is_merged_of_all_its_shards,
)
CERTIFICATE_RULES: tuple[Rule, ...] = (
    *CLAIMS,
    lists_the_samples_chosen,
    summarises_its_samples,
    accounts_for_its_cascade,
    counts_its_eliminated_neurons,
)


def _summary(samples: Samples, frame: Frame) -> Record:
    """The summary that these samples have."""
    n, correct = len(samples), [sample for sample in samples if right(sample)]
    word = "estimated" if frame.estimate else "certified"
    radii = [radius_of(sample, frame) for sample in correct]
    made: Record = {
        "n": n,
        "clean_correct": len(correct),
        "clean_accuracy": len(correct) / n,
        "radius_estimate" if frame.estimate else "radius": {
            "mean": fmean(radii) if radii else None,
            "median": median(radii) if radii else None,
        },
        "verdicts": dict(Counter(sample["verdict"] for sample in samples)),
    }
    made |= _shares(word, n, {
        eps.text: sum(eps.text in reached(sample, frame) for sample in samples)
        for eps in frame.eps
    })  # fmt: skip
    if any("attack" in sample.get("rungs", ()) for sample in samples):
        left = [sample.get("attack_radius") for sample in correct]
        made |= _shares("upper", n, {
            text: sum(attacked is None or attacked > below for attacked in left)
            for text, (below, _) in frame.rounded.items()
        })  # fmt: skip
    charged = [
        (sample["deployed_error"], sample["deployed_error"] / sample["margin"])
        for sample in correct
        if "deployed_error" in sample and sample["margin"] is not None and sample["margin"] > 0
    ]
    if charged and not frame.estimate:
        error, share = map(median, zip(*charged, strict=True))
        made["deployed_error"] = {"median": error, "median_share": share}
    return made


def _shares(word: str, n: int, counts: dict[str, int]) -> Record:
    shares = {text: count / n for text, count in counts.items()}
    return {f"{word}_count": counts, f"{word}_accuracy": shares}


def differing(name: str, found: Any, expected: Any) -> str | None:
    """Where two records differ by more than sums in another order do; None where they do not."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in expected | found:
            if (key in found) != (key in expected):
                missing = "is missing" if key in expected else "has nothing to rest on"
                return f"{key} of {name} {missing}"
            if said := differing(f"{name}.{key}", found[key], expected[key]):
                return said
        return None
    both = isinstance(found, int | float) and isinstance(expected, int | float)
    same = math.isclose(found, expected, rel_tol=_SLACK) if both else found == expected
    return None if same else f"{name} is {found}, the samples give {expected}"
