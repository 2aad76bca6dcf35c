"""The activations: one family a file, one list of them all."""

from lipcert.network.activations.base import Activation, Crossing, Elementwise
from lipcert.network.activations.gated import Gelu, GeluTanh, HardSwish, Mish, Silu
from lipcert.network.activations.grouped import GroupMax, MaxMin
from lipcert.network.activations.identity import Identity
from lipcert.network.activations.piecewise_linear import Clip, PReLU, absolute, relu
from lipcert.network.activations.sigmoidal import Erf, Sigmoid, Tanh
from lipcert.network.activations.smooth import Smooth
from lipcert.network.activations.softened import Elu, Softplus

ACTIVATIONS: tuple[type[Activation], ...] = (
    Clip, PReLU, MaxMin, GroupMax, Sigmoid, Tanh, Erf, Softplus, Elu, Silu, Gelu, GeluTanh, Mish,
    HardSwish, Identity,
)  # fmt: skip

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Clip",
    "Crossing",
    "Elementwise",
    "Elu",
    "Erf",
    "Gelu",
    "GeluTanh",
    "GroupMax",
    "HardSwish",
    "Identity",
    "MaxMin",
    "Mish",
    "PReLU",
    "Sigmoid",
    "Silu",
    "Smooth",
    "Softplus",
    "Tanh",
    "absolute",
    "relu",
]
