"""How the fields of one sample fit together, in ``samples.jsonl`` and in the journal alike.

Every rule tells what is wrong, or None; its docstring is what it demands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from lipcert.errors import CannotCertify
from lipcert.records import schemas
from lipcert.records.frame import Frame
from lipcert.records.strict_json import Record, parse
from lipcert.rounding import exceeds

Rule = Callable[[Record, Frame], str | None]

# Of sums in another order.
_SLACK = 1e-9


def read_sample(content: bytes, frame: Frame, where: str) -> Record:
    """The sample on one line. Raises ``CannotCertify`` that begins with ``where``."""
    record = parse(content, where)
    check_sample(record, frame, where)
    return record


def check_sample(record: Record, frame: Frame, where: str) -> None:
    """Raises ``CannotCertify`` that begins with ``where`` for a record that no run writes."""
    schemas.check(record, "sample", where)
    for rule in SAMPLE_RULES:
        if said := rule(record, frame):
            raise CannotCertify(f"{where}: sample {record['index']} cannot be: {said}")


def right(sample: Record) -> bool:
    """Whether the label is the prediction or, of a run with ``--top-k``, among the best."""
    return bool(sample["label"] in sample.get("top", [sample["prediction"]]))


def radius_of(sample: Record, frame: Frame) -> float:
    """The certified radius, or that of an ESTIMATE; 0 where there is none."""
    found = sample.get("radius_estimate") if frame.estimate else sample["radius"]
    return found or 0.0


def reached(sample: Record, frame: Frame) -> Sequence[str]:
    """The eps at which the sample is certified, or estimated to be robust."""
    found: Sequence[str] = sample.get("estimated" if frame.estimate else "certified", ())
    return found


def is_of_the_run(sample: Record, frame: Frame) -> str | None:
    """An index is one of the data's and of the run's, with the label that it has there."""
    index, label = sample["index"], sample["label"]
    if index >= frame.size:
        return f"its index is outside the {frame.size} samples of the data"
    if frame.labels is not None and frame.labels.get(index) != label:
        known = frame.labels.get(index)
        return f"label {label}, not {known}" if known is not None else "it is not of this run"
    return None


def has_classes(sample: Record, frame: Frame) -> str | None:
    """A label is a class of data and model, a prediction one of the model, -1 only after an
    error."""
    if sample["label"] >= min(frame.classes, frame.outputs):
        return f"label {sample['label']} is no class"
    if sample["prediction"] >= frame.outputs:
        return f"prediction {sample['prediction']} is none of the {frame.outputs} classes"
    if sample["prediction"] < 0 and sample["verdict"] != "error":
        return f"it is {sample['verdict']} without a prediction"
    return None


def has_classes_that_compete(sample: Record, frame: Frame) -> str | None:
    """Where not all outputs compete, label and prediction are among those that do; where several
    best ones count, they are listed, each once, the prediction first."""
    classes, k = frame.options.only_classes, frame.options.top_k
    top = sample.get("top", [])
    if classes is not None:
        for one in (sample["label"], *top, *[sample["prediction"]] * (sample["prediction"] >= 0)):
            if one not in classes:
                return f"class {one} does not compete"
    if k == 1 or sample["prediction"] < 0:
        return "it lists the best classes" if top else None
    if len(top) != k or len(set(top)) != k or top[0] != sample["prediction"]:
        return f"its {k} best classes are {top}, its prediction {sample['prediction']}"
    if max(top) >= frame.outputs:
        return f"class {max(top)} is none of the {frame.outputs} classes"
    return None


def says_whether_it_is_an_estimate(sample: Record, frame: Frame) -> str | None:
    """Every line of an ESTIMATE says so, and no other line does."""
    if ("assurance" in sample) != frame.estimate:
        return "an estimate and a certificate are mixed"
    return None


def has_a_margin(sample: Record, frame: Frame) -> str | None:
    """The prediction's logit is the largest, by a known margin; by a positive one where anything is
    certified; only an error knows none. Where several best ones count, the label's margin is
    positive where it is among them, and only there."""
    margin, verdict = sample["margin"], sample["verdict"]
    if margin is None or sample["prediction"] < 0:
        known = margin is not None or sample["prediction"] >= 0
        return f"it is {verdict} without a margin" if verdict != "error" or known else None
    if frame.options.top_k > 1:
        if (margin > 0) != right(sample):
            where = "among" if right(sample) else "not among"
            return f"margin {margin}, with the label {where} the best"
        return None
    if margin < 0:
        return f"margin {margin}: the prediction has the largest logit"
    if margin == 0 and (reached(sample, frame) or radius_of(sample, frame)):
        return "nothing is certified at a tie"
    return None


def radius_is_in_the_domain(sample: Record, frame: Frame) -> str | None:
    """A radius is a number, at most the diagonal of the domain or the largest eps; an ESTIMATE's
    stands in a field of its own."""
    if not frame.estimate and sample["radius"] is None:
        return "radius is null"
    radius = radius_of(sample, frame)
    if radius > frame.farthest * (1 + _SLACK):
        return f"radius {radius} is outside the domain, whose diagonal is {frame.farthest:.6g}"
    return None


def lists_the_eps_within_its_radius(sample: Record, frame: Frame) -> str | None:
    """The eps that are listed are the options' eps up to the radius, in the options' order; whether
    the sample alone, eps 0, is certified the radius does not tell."""
    listed, radius = list(reached(sample, frame)), radius_of(sample, frame)
    within = [
        text
        for text, (_, above) in frame.rounded.items()
        if right(sample) and (radius >= above if above > 0 else text in listed or radius > 0)
    ]
    if listed != within:
        return f"certified at {listed}, with a radius of {radius}"
    return None


def only_the_right_claim(sample: Record, frame: Frame) -> str | None:
    """A misclassified sample and an error have no radius, no eps, and were not attacked."""
    if right(sample) and sample["verdict"] != "error":
        return None
    for name in ("radius", "radius_estimate", "certified", "estimated"):
        if sample.get(name):
            return f"it is {sample['verdict']}, yet {name} is {sample[name]}"
    if sample.get("attack_radius") is not None:
        return f"it is {sample['verdict']}, yet was attacked"
    return None


def has_the_verdict_of_its_fields(sample: Record, frame: Frame) -> str | None:
    """Misclassified where the answer is not right; certified where the largest eps is listed;
    else falsified where an attack came within it; else unknown or out of time."""
    verdict, attacked = sample["verdict"], sample.get("attack_radius")
    below, _ = frame.rounded[frame.largest]
    if verdict == "error":
        return None
    if not right(sample):
        fitting = {"misclassified"}
    elif frame.largest in reached(sample, frame):
        fitting = {"estimated" if frame.estimate else "certified"}
    elif attacked is not None and attacked <= below:
        fitting = {"falsified"}
    else:
        late = frame.options.time_per_sample is not None
        fitting = {"unknown", "timeout"} if late else {"unknown"}
    if verdict not in fitting:
        return f"it is {verdict}; by its other fields it is {' or '.join(sorted(fitting))}"
    return None


def says_what_failed(sample: Record, frame: Frame) -> str | None:
    """An error says which."""
    return None if sample["verdict"] != "error" or sample.get("message") else "no message"


def no_attack_came_within_the_radius(sample: Record, frame: Frame) -> str | None:
    """An attack found nothing within the certified radius."""
    attacked, radius = sample.get("attack_radius"), sample["radius"]
    claims = bool(radius) or bool(sample.get("certified"))
    if attacked is not None and claims and radius >= attacked:
        return f"radius {radius}, and an attack at {attacked}"
    return None


def spends_what_it_may(sample: Record, frame: Frame) -> str | None:
    """A sample's failure probability is at most the run's, and 0 where norms may not fail."""
    allowed = 0.0 if frame.options.deterministic else frame.options.failure_probability
    spent = sample["failure_probability"]
    if not frame.estimate and exceeds(spent, allowed):
        return f"failure probability {spent}, of {allowed} for the whole run"
    return None


def went_through_its_rungs(sample: Record, frame: Frame) -> str | None:
    """The method, what decided and the attack are among the rungs, whose seconds are the sample's;
    a verdict that is open was decided by none."""
    rungs, decided = sample.get("rungs", {}), sample.get("decided_by")
    if not rungs:
        return f"decided by {decided}, through which it did not go" if decided else None
    if decided is not None and decided not in rungs:
        return f"decided by {decided}, through which it did not go"
    if (decided is None) != (sample["verdict"] in ("unknown", "timeout")):
        return f"it is {sample['verdict']}, decided by {decided}"
    if sample["method"] not in rungs:
        return f"radius by {sample['method']}, through which it did not go"
    # The sample itself may be what its claim does not hold at.
    if sample.get("attack_radius") and "attack" not in rungs:
        return "an attack radius without an attack"
    if not math.isclose(sample["seconds"], math.fsum(rungs.values()), rel_tol=_SLACK):
        return f"{sample['seconds']} seconds, while its rungs took {math.fsum(rungs.values())}"
    return None


SAMPLE_RULES: tuple[Rule, ...] = (
    is_of_the_run,
    has_classes,
    has_classes_that_compete,
    says_whether_it_is_an_estimate,
    has_a_margin,
    radius_is_in_the_domain,
    lists_the_eps_within_its_radius,
    only_the_right_claim,
    has_the_verdict_of_its_fields,
    says_what_failed,
    no_attack_came_within_the_radius,
    spends_what_it_may,
    went_through_its_rungs,
)
