"""The table of formats: each a module whose ``render`` makes text of results and gate outcomes.

Names alone until one is rendered, so that ``lipcert --help`` need not load them.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from lipcert.gate import Outcome

if TYPE_CHECKING:
    from lipcert.report.results import Results

Format = Literal["html", "markdown", "junit", "badge", "csv", "model-card", "attestation"]
ComparisonFormat = Literal["text", "markdown", "html", "json"]

MODULES: dict[Format, str] = {
    "html": "html_page",
    "markdown": "markdown",
    "junit": "junit",
    "badge": "badge",
    "csv": "csv_file",
    "model-card": "model_card",
    "attestation": "attestation",
}


def render(format: Format, results: Results, outcomes: Sequence[Outcome] = ()) -> str:
    """The report in that format. Raises ``UsageError`` and ``CannotCertify`` as its module does."""
    text: str = import_module(f"lipcert.report.{MODULES[format]}").render(results, outcomes)
    return text
