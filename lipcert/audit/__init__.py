"""A second opinion on a finished certificate, by roads that share nothing with the first.

Nothing here imports the packages ``bounds``, ``norms``, ``certification`` or ``network``: the file
is read anew, norms are eigenvalues by LAPACK, and the bound is evaluated in numpy's longest type.
"""

from lipcert.audit.auditor import Effort
from lipcert.audit.claims import Contradiction
from lipcert.audit.progress import AuditWatch
from lipcert.audit.provenance import Sources
from lipcert.audit.report import Audit, Audited, Finding
from lipcert.audit.run import audit

__all__ = [
    "Audit",
    "AuditWatch",
    "Audited",
    "Contradiction",
    "Effort",
    "Finding",
    "Sources",
    "audit",
]  # fmt: skip
