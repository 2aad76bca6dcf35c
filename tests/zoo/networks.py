"""A zoo: small networks of the kinds that people have, made with fixed seeds.

Each entry is a function that makes a module, and the shape of its input. Weights are those of torch
or made from these, orthogonal where the kind says so: networks to load and to bound, not to be
right about anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from loading.joint_networks import NETWORKS as JOINTS
from loading.sorting import SORTINGS
from torch import Tensor, nn

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    make: Callable[[], nn.Module]
    shape: Shape

    def module(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make().eval()


class Apply(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Sum(nn.Module):
    """``x`` and what branches make of it."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        total = x
        for branch in self.branches:
            total = total + branch(x)
        return total


class Concat(Sum):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, *(branch(x) for branch in self.branches)], 1)


def orthogonal(layer: nn.Module) -> nn.Module:
    """A layer whose matrix is orthogonal: of a convolution at its middle tap."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    rows, columns = weight.shape[:2]
    square = torch.linalg.qr(torch.randn(max(rows, columns), max(rows, columns)))[0]
    found = torch.zeros_like(weight)
    middle = tuple(size // 2 for size in weight.shape[2:])
    found[(slice(None), slice(None), *middle)] = square[:rows, :columns]
    layer.weight = nn.Parameter(found)
    return layer


def norm_layer(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    norm.running_mean, norm.running_var = torch.randn(channels) / 9, torch.rand(channels) + 0.5
    return norm


class SkewSeries(nn.Module):
    """A skew orthogonal convolution: five terms of an exponential series."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        weight = torch.randn(channels, channels, 3, 3) / 6
        weight = weight - weight.flip(2, 3).transpose(0, 1)
        self.weight = nn.Parameter(weight / weight.flatten(1).norm() * 2)

    def forward(self, x: Tensor) -> Tensor:
        total, power = x, x
        for k in range(1, 6):
            power = F.conv2d(power, self.weight, padding=1) / k
            total = total + power
        return total


class Potential(nn.Module):
    """``x − 2 W T⁻¹ σ(Wᵀ x + b)``: with T a number for each channel, or one for all (CPL)."""

    def __init__(self, channels: int, *, each: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2 * channels, channels, 3, 3) / 4)
        self.bias = nn.Parameter(torch.randn(2 * channels) / 4)
        w = self.weight.detach()
        whole = w.abs().sum((1, 2, 3)) * w.abs().sum((0, 2, 3)).max()
        self.by = nn.Parameter((2 / (whole if each else whole.max())).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(F.conv2d(x, self.weight, self.bias, padding=1)) * self.by
        return x - F.conv_transpose2d(z, self.weight, padding=1)


class DensePotential(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2 * size, size))
        self.by = nn.Parameter(2 / (self.weight @ self.weight.T).abs().sum(1).detach())

    def forward(self, x: Tensor) -> Tensor:
        return x - (F.relu(F.linear(x, self.weight)) * self.by) @ self.weight


def mlp(kind: nn.Module) -> Entry:
    return Entry(
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(36, 16), kind, nn.Linear(16, 16), kind, nn.Linear(16, 4)
        ),
        (1, 6, 6),
    )  # fmt: skip


def cnn(*layers: Callable[[], nn.Module], channels: int = 2, size: int = 6) -> Entry:
    """Layers on images, then a layer for the logits of whatever size fits."""

    def make() -> nn.Module:
        body = nn.Sequential(*(layer() for layer in layers)).eval()
        flat = body(torch.zeros(1, channels, size, size)).flatten(1).shape[1]
        return nn.Sequential(body, nn.Flatten(), nn.Linear(flat, 4))

    return Entry(make, (channels, size, size))


def conv(i: int, o: int, k: int = 3, **given: object) -> Callable[[], nn.Module]:
    given = {"padding": k // 2, **given}
    return lambda: nn.Conv2d(i, o, k, **given)  # type: ignore[arg-type]


def sorts(name: str) -> Callable[[], nn.Module]:
    return lambda: Apply(SORTINGS[name])


def groups_of(size: int) -> Callable[[], nn.Module]:
    def sort(z: Tensor) -> Tensor:
        return z.reshape(z.shape[0], -1, size).sort(2)[0].reshape(z.shape)

    return lambda: Apply(sort)


RELU = nn.ReLU
ACTIVATIONS: dict[str, nn.Module] = {
    "ReLU": nn.ReLU(),
    "leaky ReLU": nn.LeakyReLU(0.1),
    "PReLU": nn.PReLU(),
    "ReLU6": nn.ReLU6(),
    "hard tanh": nn.Hardtanh(),
    "ELU": nn.ELU(),
    "SELU": nn.SELU(),
    "CELU": nn.CELU(2.0),
    "GELU": nn.GELU(),
    "GELU tanh": nn.GELU(approximate="tanh"),
    "SiLU": nn.SiLU(),
    "Mish": nn.Mish(),
    "softplus": nn.Softplus(threshold=40),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "hard swish": nn.Hardswish(),
    "hard sigmoid": nn.Hardsigmoid(),
    "absolute value": Apply(torch.abs),
}

ZOO: dict[str, Entry] = {
    **{f"MLP, {name}": mlp(kind) for name, kind in ACTIVATIONS.items()},
    "convolutions": cnn(conv(2, 4), RELU, conv(4, 4), RELU),
    "strided": cnn(conv(2, 4, stride=2), RELU, conv(4, 4, 2, stride=2, padding=0), RELU),
    "grouped": cnn(conv(2, 4, groups=2), RELU, conv(4, 8, groups=2), RELU),
    "depthwise separable": cnn(conv(2, 2, groups=2), RELU, conv(2, 6, 1), RELU),
    "dilated": cnn(conv(2, 4, dilation=2, padding=2), RELU, conv(4, 4, padding=0), RELU),
    "transposed": cnn(conv(2, 4, stride=2), RELU, lambda: nn.ConvTranspose2d(4, 2, 4, 2, 1), RELU),
    "circular padding": cnn(conv(2, 4, padding_mode="circular"), RELU, conv(4, 4), RELU),
    "reflected padding": cnn(conv(2, 4, padding_mode="reflect"), RELU, conv(4, 4), RELU),
    "batch norm": cnn(
        conv(2, 4), lambda: norm_layer(4), RELU, conv(4, 4), lambda: norm_layer(4), RELU
    ),
    "residual": cnn(
        conv(2, 4), RELU, lambda: Sum(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())), RELU
    ),
    "residual, batch norm first": cnn(
        conv(2, 4),
        lambda: Sum(nn.Sequential(norm_layer(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))),
        RELU,
    ),
    "bottleneck": cnn(
        conv(2, 6),
        lambda: Sum(
            nn.Sequential(
                nn.Conv2d(6, 3, 1),
                nn.ReLU(),
                nn.Conv2d(3, 3, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(3, 6, 1),
            )
        ),
        RELU,
    ),
    "dense connections": cnn(
        lambda: Concat(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU())),
        lambda: Concat(nn.Sequential(nn.Conv2d(5, 3, 3, padding=1), nn.ReLU())),
    ),
    "two branches": cnn(
        conv(2, 4), RELU, lambda: Sum(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)), RELU
    ),
    "inverted residual": cnn(
        conv(2, 3),
        lambda: Sum(
            nn.Sequential(
                nn.Conv2d(3, 6, 1),
                nn.ReLU6(),
                nn.Conv2d(6, 6, 3, padding=1, groups=6),
                nn.ReLU6(),
                nn.Conv2d(6, 3, 1),
            )
        ),
    ),
    "average pooling": cnn(conv(2, 4), RELU, lambda: nn.AvgPool2d(2)),
    "max pooling": cnn(conv(2, 4), RELU, lambda: nn.MaxPool2d(2)),
    "max pooling, overlapping": cnn(conv(2, 3), RELU, lambda: nn.MaxPool2d(3, 2, 1)),
    "global pooling": cnn(conv(2, 6), RELU, lambda: nn.AdaptiveAvgPool2d(1)),
    "upsampling": cnn(conv(2, 4, stride=2), RELU, lambda: nn.Upsample(scale_factor=2), conv(4, 2)),
    "pixel shuffle": cnn(conv(2, 8, stride=2), RELU, lambda: nn.PixelShuffle(2), conv(2, 2), RELU),
    "space to depth": cnn(lambda: nn.PixelUnshuffle(2), conv(8, 6), RELU),
    "channels last": cnn(
        conv(2, 4), lambda: Apply(lambda x: x.permute(0, 2, 3, 1)), lambda: nn.Linear(4, 4), RELU
    ),
    "signals": Entry(
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv1d(4, 4, 3, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(28, 4),
        ),
        (2, 16),
    ),
    "volumes": Entry(
        lambda: nn.Sequential(nn.Conv3d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(81, 4)),
        (1, 4, 4, 4),
    ),
    "softmax at the end": Entry(
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 4), nn.Softmax(1)
        ),
        (1, 6, 6),
    ),
    "orthogonal, GroupSort": cnn(
        lambda: orthogonal(nn.Conv2d(2, 4, 3, padding=1)),
        sorts("neighbours_sorted"),
        lambda: orthogonal(nn.Conv2d(4, 4, 3, padding=1)),
        sorts("halves_reduced"),
    ),
    "orthogonal, written with ReLU": cnn(
        lambda: orthogonal(nn.Conv2d(2, 4, 3, padding=1)),
        sorts("relu_once"),
        lambda: orthogonal(nn.Conv2d(4, 4, 3, padding=1)),
        sorts("strided_relu"),
    ),
    "orthogonal, written with choices": cnn(
        lambda: orthogonal(nn.Conv2d(2, 4, 3, padding=1)),
        sorts("where_greater"),
        lambda: orthogonal(nn.Conv2d(4, 4, 3, padding=1)),
        sorts("masked"),
    ),
    "GroupSort of four": Entry(
        lambda: nn.Sequential(
            nn.Flatten(),
            orthogonal(nn.Linear(16, 16)),
            groups_of(4)(),
            orthogonal(nn.Linear(16, 16)),
            groups_of(4)(),
            nn.Linear(16, 4),
        ),
        (1, 4, 4),
    ),
    "full sort": Entry(
        lambda: nn.Sequential(
            nn.Flatten(), orthogonal(nn.Linear(16, 16)), groups_of(16)(), nn.Linear(16, 4)
        ),
        (1, 4, 4),
    ),
    "maxout": Entry(
        lambda: nn.Sequential(
            nn.Flatten(),
            nn.Linear(16, 24),
            Apply(lambda z: z.reshape(-1, 8, 3).amax(2)),
            nn.Linear(8, 4),
        ),
        (1, 4, 4),
    ),
    "skew orthogonal": cnn(
        conv(2, 4, 1),
        lambda: SkewSeries(4),
        sorts("strided"),
        lambda: SkewSeries(4),
        sorts("strided"),
    ),
    "linear residual": cnn(
        conv(2, 4),
        lambda: Sum(nn.Conv2d(4, 4, 3, padding=1)),
        sorts("strided"),
        lambda: Sum(nn.Conv2d(4, 4, 3, padding=1)),
        sorts("strided"),
    ),
    "convex potential": cnn(
        conv(2, 4, 1), lambda: Potential(4, each=False), lambda: Potential(4, each=False)
    ),
    "SDP-based": cnn(
        conv(2, 4, 1), lambda: Potential(4, each=True), lambda: Potential(4, each=True)
    ),
    "SDP-based, dense": Entry(
        lambda: nn.Sequential(
            nn.Flatten(), DensePotential(16), DensePotential(16), nn.Linear(16, 4)
        ),
        (1, 4, 4),
    ),
    **{name: Entry(make, (3, 8, 8)) for name, (make, _) in JOINTS.items()},
}
# Those that torch's newer exporter writes too.
DYNAMO = (
    "MLP, GELU", "convolutions", "residual", "channels last", "max pooling", "convex potential",
    "orthogonal, written with ReLU", "GroupSort of four",
)  # fmt: skip
