"""The errors that a user can cause, each with the exit code the command line ends with.

A message names the file, the operator or the option at fault and says what to do; it is shown
as it stands, without a traceback.
"""


class LipcertError(Exception):
    """A failure that the user can understand and act on; never raised itself."""

    exit_code = 4


class UsageError(LipcertError):
    """Wrong use or configuration: an option, a name, a shape that does not fit (exit 2)."""

    exit_code = 2


class CannotCertify(LipcertError):
    """No sound result is possible: an unsupported operator, a failed cross-check, a wrong
    checksum, an implausible clean accuracy, nothing to certify (exit 3)."""

    exit_code = 3


class InternalError(LipcertError):
    """A contradiction inside lipcert itself: a result that must never be shown (exit 4)."""

    exit_code = 4
