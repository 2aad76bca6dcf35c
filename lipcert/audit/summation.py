"""The order of sums that a certificate holds for, measured again."""

from __future__ import annotations

import onnx

from lipcert.audit.claims import Claims
from lipcert.errors import CannotCertify
from lipcert.loading.summation import again, machine


def check_summation(claims: Claims, model: onnx.ModelProto) -> None:
    """Raises ``CannotCertify`` where a certificate holds for another runtime than the one of this
    machine, whose results say nothing about it, or where that adds in another order."""
    record = claims.certificate["model"].get("summation")
    if record is None:
        return
    name, here = claims.certificate["model"]["name"], machine()
    differing = [field for field in here if here[field] != record[field]]
    if differing:
        named = ", ".join(f"{field} {record[field]}, here {here[field]}" for field in differing)
        raise CannotCertify(
            f"{claims.path}: holds for one runtime alone, whose order of sums was measured, and "
            f"not for this one: {named}; audit it there"
        )
    found = again(model, name)
    for told, seen in zip(record["layers"], found["layers"], strict=False):
        if told != seen:
            raise CannotCertify(
                f"{claims.path}: says of the sums of {told['layer']} what probing does not find "
                f"again: {told}, found {seen}; certify again"
            )
    if len(record["layers"]) != len(found["layers"]):
        raise CannotCertify(f"{claims.path}: lists the sums of other layers than {name} has")
