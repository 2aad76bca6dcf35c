"""The strict reader of certificates, samples and journals: whoever reads any of them reads here.

A file passes three gates, each in a module of its own: it is JSON as lipcert writes it
(``strict_json``), it has the fields, types and ranges of its JSON Schema (``schemas``), and its
fields fit together (``sample_rules``, ``certificate_rules``). What does not pass is refused with
``CannotCertify``, which names the file, the line and the place within it.
"""

from lipcert.records.frame import Frame
from lipcert.records.reading import Records, read
from lipcert.records.sample_rules import read_sample

__all__ = ["Frame", "Records", "read", "read_sample"]
