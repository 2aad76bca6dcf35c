"""The activations: one family a file, one list of them all."""

from lipcert.network.activations.base import Activation, Elementwise
from lipcert.network.activations.grouped import GroupMax, MaxMin
from lipcert.network.activations.piecewise_linear import Clip, PReLU, absolute, relu
from lipcert.network.activations.smooth import Sigmoid, Tanh

ACTIVATIONS: tuple[type[Activation], ...] = (Clip, PReLU, MaxMin, GroupMax, Sigmoid, Tanh)

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Clip",
    "Elementwise",
    "GroupMax",
    "MaxMin",
    "PReLU",
    "Sigmoid",
    "Tanh",
    "absolute",
    "relu",
]
