"""The words of a report, for readers who meet them for the first time."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from lipcert.report import elements
from lipcert.report.results import Results

VERDICTS = {
    "certified": "It is proven that no change of the input of L2 length up to eps alters the "
    "answer, and the answer is right.",
    "estimated": "An ESTIMATE would have it so; nothing is proven.",
    "falsified": "A change of length up to eps was found that alters the answer.",
    "unknown": "Nothing is proven, and no change was found that alters the answer.",
    "timeout": "As unknown, where --time-per-sample ended the search.",
    "misclassified": "The answer is wrong without any change. It counts against all shares.",
    "error": "lipcert itself failed at this sample; it counts against all shares, and no gate "
    "holds.",
}


def section(results: Results) -> str:
    """The glossary, closed at first: the words that this report uses."""
    items = "".join(
        f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in _terms(results)
    )
    return elements.section(
        "Glossary", elements.details("What the words mean", f"<dl>{items}</dl>")
    )


def _terms(results: Results) -> Iterator[tuple[str, str]]:
    yield from ((v, VERDICTS[v]) for v in results.summary["verdicts"] if v in VERDICTS)
    yield (
        "eps",
        "The L2 length of a change: the square root of the sum of the squared changes of all "
        "values of the input, before any normalisation.",
    )
    if not results.estimate:
        yield (
            "certified radius",
            "The largest eps found at which a sample is proven; 0 where there is none.",
        )
        meaning = "The share of all samples that are certified at eps: a lower bound of the "
        meaning += "accuracy under the worst changes of that length."
        if results.upper:
            meaning += " The share that is not falsified is an upper bound."
        yield results.claim, meaning
    yield results.clean_name, "The share of right answers without any change."
    if results.what:
        yield "claim", f"What is certified, or not: {results.what}. An answer is right where it is."
    yield "margin", "The logit of the answer minus the largest other logit."
    yield (
        "assurance",
        "What the numbers rest on. Deterministic: arithmetic alone. Randomised: all norms together "
        "are right but for the stated probability, over coins that lipcert tossed. ESTIMATE: "
        "nothing is proven.",
    )
    if results.certificate.get("cascade"):
        yield (
            "rung",
            "One of the methods that a sample goes through, the cheap ones first, until one "
            "decides its verdict.",
        )
