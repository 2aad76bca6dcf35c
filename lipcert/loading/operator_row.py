"""What a reading tells of each node of a file."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from lipcert.loading.value import module_path


@dataclass(frozen=True)
class OperatorRow:
    """One node of the file. ``version`` is the one in which its operator last changed;
    ``module`` the torch module it comes from, where the file tells; ``note`` what becomes of it,
    or why it is not supported. ``bound``: whether bounds know it exactly, as they know what is
    affine or piecewise linear, or enclose it; empty where it is not supported. ``products``: how
    many numbers one sweep through what it became multiplies, at most; none of a part of another."""

    operator: str
    domain: str
    version: int
    name: str
    module: str
    supported: bool
    note: str
    bound: str = ""
    products: int = 0

    @classmethod
    def of(
        cls, node: onnx.NodeProto, opset: int, supported: bool, note: str, bound: str = "",
        products: int = 0,
    ) -> OperatorRow:  # fmt: skip
        domain = "" if node.domain == "ai.onnx" else node.domain
        version = _since(node.op_type, domain, opset)
        return cls(
            node.op_type, domain, version, node.name, module_path(node), supported, note, bound,
            products,
        )  # fmt: skip

    def title(self, otherwise: str) -> str:
        """Operator and place; ``otherwise`` is a place for a node without names."""
        kind = (
            f"{self.domain}.{self.operator}" if self.domain else f"{self.operator}-{self.version}"
        )
        named = " / ".join(dict.fromkeys(n for n in (self.module, self.name) if n))
        return f"{kind} at {named or otherwise}"


def _since(operator: str, domain: str, version: int) -> int:
    try:
        return int(onnx.defs.get_schema(operator, version, domain).since_version)
    except onnx.defs.SchemaError:
        return version
