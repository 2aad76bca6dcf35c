"""A second opinion on a finished certificate, by roads that share nothing with the first.

Nothing here imports the packages ``bounds``, ``norms``, ``certification`` or ``network``: the file
is read anew, norms are eigenvalues by LAPACK, and the bound is evaluated in numpy's longest type.
"""

from lipcert.audit.auditor import Effort
from lipcert.audit.claims import Contradiction
from lipcert.audit.progress import Watch
from lipcert.audit.provenance import Sources
from lipcert.audit.report import Audit, Audited, Finding
from lipcert.audit.run import audit

__all__ = [
    "Audit", "Audited", "Contradiction", "Effort", "Finding", "Sources", "Watch", "audit",
]  # fmt: skip
