"""The activations: one family a file, one list of them all."""

from lipcert.network.activations.base import Activation, Elementwise, Relaxation
from lipcert.network.activations.gated import Gelu, GeluTanh, HardSwish, Mish, Silu
from lipcert.network.activations.grouped import GroupMax, GroupSort, MaxMin
from lipcert.network.activations.identity import Identity
from lipcert.network.activations.piecewise_linear import Clip, PReLU, absolute, relu
from lipcert.network.activations.sigmoidal import Erf, Sigmoid, Tanh
from lipcert.network.activations.smooth import Smooth
from lipcert.network.activations.softened import Elu, Softplus

ACTIVATIONS: tuple[type[Activation], ...] = (
    Clip, PReLU, MaxMin, GroupMax, GroupSort, Sigmoid, Tanh, Erf, Softplus, Elu, Silu, Gelu,
    GeluTanh, Mish, HardSwish, Identity,
)  # fmt: skip

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Clip",
    "Elementwise",
    "Elu",
    "Erf",
    "Gelu",
    "GeluTanh",
    "GroupMax",
    "GroupSort",
    "HardSwish",
    "Identity",
    "MaxMin",
    "Mish",
    "PReLU",
    "Relaxation",
    "Sigmoid",
    "Silu",
    "Smooth",
    "Softplus",
    "Tanh",
    "absolute",
    "relu",
]
