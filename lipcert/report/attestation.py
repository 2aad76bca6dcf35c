"""An in-toto Statement v1 with the test-result predicate v0.1: who was tested, how, and the result.

It is unsigned: signing, and what a signature means, belong to the release process outside.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from lipcert.errors import CannotCertify, UsageError
from lipcert.gate import Outcome, worst
from lipcert.report.results import Results

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://in-toto.io/attestation/test-result/v0.1"

_RESULTS = {"pass": "PASSED", "warn": "WARNED", "fail": "FAILED"}


def render(results: Results, outcomes: Sequence[Outcome] = ()) -> str:
    """Subjects: the model's files by sha256. Configuration: the certificate, its samples and the
    data, by sha256. Tests: the gates, in the words of their messages.

    Raises ``UsageError`` where no gate was asked for, ``CannotCertify`` for an ESTIMATE.
    """
    if results.estimate:
        raise CannotCertify(
            "--format attestation: an ESTIMATE bounds nothing, so there is nothing to attest; "
            "certify with --norms randomised or --norms deterministic"
        )
    if not outcomes:
        raise UsageError(
            "--format attestation: states whether gates held; give some, such as "
            "--min-certified 0.60"
        )
    certificate = results.certificate
    tests = {
        status: [f"{o.gate}: {o.message}" for o in outcomes if o.status == status]
        for status in _RESULTS
    }
    data = certificate["data"]
    configuration = [
        {"name": name, "digest": {"sha256": digest}} for name, digest in results.digests.items()
    ]
    configuration.append(
        {"name": f"data: {data['name']} {data['split']}", "digest": {"sha256": data["sha256"]}}
    )
    statement = {
        "_type": STATEMENT,
        "subject": [
            {"name": name, "digest": {"sha256": digest}}
            for name, digest in certificate["model"]["files"].items()
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "result": _RESULTS[worst(outcomes)],
            "configuration": configuration,
            "passedTests": tests["pass"],
            "warnedTests": tests["warn"],
            "failedTests": tests["fail"],
        },
    }
    return json.dumps(statement, indent=2, ensure_ascii=False) + "\n"
