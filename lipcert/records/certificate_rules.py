"""How a certificate fits its samples and itself.

Every rule tells what is wrong, or None; its docstring is what it demands. The figures of its
samples are found once more (``figures``), by lines that share nothing with those that wrote them.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

from lipcert.certificate import OWN, PIXELS, RANGE, threat_model
from lipcert.errors import CannotCertify
from lipcert.records.figures import Figures
from lipcert.records.frame import Frame
from lipcert.records.strict_json import Record
from lipcert.rounding import exceeds

Rule = Callable[[Record, Figures, Frame], str | None]

# The layouts of images, as ``data.reading`` names them; all others are of other kinds of data.
_IMAGES = {"nchw", "nhwc", "nhw", "flat"}
# Of sums in another order.
_SLACK = 1e-9


def check_certificate(certificate: Record, figures: Figures, frame: Frame, where: str) -> None:
    """Raises ``CannotCertify`` that begins with ``where`` for what no run writes."""
    for rule in CERTIFICATE_RULES:
        if said := rule(certificate, figures, frame):
            raise CannotCertify(f"{where}: cannot be: {said}")


def options_have_their_digest(certificate: Record, _: Figures, frame: Frame) -> str | None:
    """``options_digest`` is the digest of the options."""
    if certificate["options_digest"] != frame.options.digest:
        return "options_digest is not the digest of the options"
    return None


def is_of_one_version(certificate: Record, _: Figures, __: Frame) -> str | None:
    """The version is that of the environment."""
    found, there = certificate["lipcert"], certificate["environment"]["lipcert"]
    return None if found == there else f"lipcert {found} in an environment with lipcert {there}"


def names_the_runtime_that_it_holds_for(
    certificate: Record, _: Figures, frame: Frame
) -> str | None:
    """A runtime is named exactly where the order of its sums was measured."""
    asked, named = frame.options.summation == "measured", "summation" in certificate["model"]
    if asked != named:
        return f"the model {'names a' if named else 'names no'} runtime whose sums were measured"
    return None


def holds_against_its_threat_model(certificate: Record, _: Figures, frame: Frame) -> str | None:
    """The threat model is the one that the options ask for, in some unit; in pixels where only
    images count."""
    found, images = certificate["threat_model"], frame.options.pixel_domain
    space = PIXELS if images else found["space"]
    if found != threat_model(pixel_domain=images, space=space):
        return f"threat_model is {found}, which its options do not ask for"
    return None


def is_in_the_unit_of_its_data(certificate: Record, _: Figures, __: Frame) -> str | None:
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


def maps_labels_to_classes(certificate: Record, _: Figures, frame: Frame) -> str | None:
    """What labels are sent to are classes, for one of them at least."""
    sent = certificate["data"].get("reading", {}).get("labels")
    if sent is not None and min(sent.values()) >= frame.classes:
        return f"labels are sent to {min(sent.values())} and above, of {frame.classes} classes"
    return None


def assures_what_it_may(certificate: Record, figures: Figures, frame: Frame) -> str | None:
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
    if exceeds(stated, options.failure_probability):
        return f"failure probability {stated}, above the {options.failure_probability} asked for"
    spent = figures.spent
    if not frame.estimate and exceeds(spent, stated):
        return f"the samples' failure probabilities sum to {spent}, above the {stated} stated"
    return None


def lists_the_samples_chosen(certificate: Record, figures: Figures, frame: Frame) -> str | None:
    """Every sample of the run, or of the shard, is listed once, in the order whose digest is
    recorded."""
    data = certificate["data"]
    if data["chosen"] > data["size"]:
        return f"{data['chosen']} samples were chosen of {data['size']}"
    number, count = map(int, (data["shard"] or "1/1").split("/"))
    if not 1 <= number <= count:
        return f"there is no shard {data['shard']}"
    due = len(range(number - 1, data["chosen"], count))
    if figures.n != due:
        return f"{figures.n} samples are listed, and {due} were chosen"
    if not figures.n:
        return "no sample is listed"
    if figures.twice is not None:
        index, times = figures.twice
        return f"sample {index} is listed {times} times"
    content = figures.numbers.astype("<i8").tobytes()
    if data["shard"] is None and hashlib.sha256(content).hexdigest() != data["indices_sha256"]:
        return "indices_sha256 is not the digest of the samples listed"
    return None


def summarises_its_samples(certificate: Record, figures: Figures, frame: Frame) -> str | None:
    """Every figure of the summary is that of the samples, and there is no other."""
    return differing("summary", certificate["summary"], figures.summary())


def accounts_for_its_cascade(certificate: Record, figures: Figures, _: Frame) -> str | None:
    """Every rung is listed, with the samples that went through it, what it decided, and its
    seconds."""
    found = {rung["rung"]: rung for rung in certificate.get("cascade", ())}
    if len(found) != len(certificate.get("cascade", ())):
        return "a rung of the cascade is listed twice"
    return differing("cascade", found, figures.cascade())


def counts_its_eliminated_neurons(certificate: Record, figures: Figures, _: Frame) -> str | None:
    """A layer's share of eliminated neurons is the mean over the samples that say so; none
    eliminates more than the layer has."""
    layers = certificate.get("layers", ())
    if len(figures.layers) > len(layers):
        return "a sample has eliminated neurons of more layers than there are"
    for number, (layer, known) in enumerate(zip_longest(layers, figures.layers)):
        neurons = layer["neurons"]
        if known is not None and known.most > neurons:
            return f"{known.most} of the {neurons} neurons of layer {number} are eliminated"
        share = None if known is None else known.neurons / (known.samples * neurons)
        if said := differing(f"layers[{number}].eliminated", layer["eliminated"], share):
            return said
    return None


def is_merged_of_all_its_shards(certificate: Record, _: Figures, __: Frame) -> str | None:
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
    if exceeds(due, stated):
        return f"failure probability {stated}, while its shards state {due} together"
    seconds = math.fsum(shard["seconds"] for shard in shards)
    return differing("seconds", certificate["seconds"], seconds)


def check_claims(certificate: Record, spent: float, frame: Frame, where: str) -> None:
    """What can be said of a certificate by itself and by what its samples ``spent`` of the failure
    probability. Raises ``CannotCertify`` that begins with ``where``."""
    figures = Figures(frame, probabilities=array("d", [spent]))
    for rule in CLAIMS:
        if said := rule(certificate, figures, frame):
            raise CannotCertify(f"{where}: cannot be: {said}")


# Those that need no more of the samples than what they spent.
CLAIMS: tuple[Rule, ...] = (
    options_have_their_digest,
    is_of_one_version,
    names_the_runtime_that_it_holds_for,
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
