"""Nodes that are neither affine nor element-wise: products, attention, normalisation, softmax."""

from lipcert.network.joints.base import Derivative, Joint, JointRelaxation, Way
from lipcert.network.joints.curve import Curve
from lipcert.network.joints.matrix_product import MatrixProduct
from lipcert.network.joints.normalise import InverseLength, Standardise
from lipcert.network.joints.product import Product, Quotient
from lipcert.network.joints.softmax import NEVER, Softmax

__all__ = [
    "NEVER", "Curve", "Derivative", "InverseLength", "Joint", "JointRelaxation", "MatrixProduct",
    "Product", "Quotient", "Softmax", "Standardise", "Way",
]  # fmt: skip
