"""Small networks with joints in torch, each with the joints that it becomes: None says "some"."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

NORM = ["InverseLength", "Standardise"]


class Attention(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.all, self.out, self.form = nn.Linear(12, 36), nn.Linear(12, 12), form

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.all(x).reshape(b, n, 3, 3, d // 3).permute(2, 0, 3, 1, 4)
        if self.form == "sdpa":
            y = functional.scaled_dot_product_attention(q, k, v)
        elif self.form == "einsum":
            scores = torch.einsum("bhid,bhjd->bhij", q, k) / 2
            y = torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)
        else:
            y = ((q @ k.transpose(-2, -1)) / 2).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, n, d))


class Transformer(nn.Module):
    """A small ViT with a class token."""

    def __init__(self, attention: nn.Module, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.patches, self.attention = nn.Conv2d(3, 12, 4, 4), attention
        self.first, self.second, self.head = norm(12), norm(12), nn.Linear(12, 5)
        self.inner = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))
        self.token = nn.Parameter(torch.randn(1, 1, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.attention(self.first(x))
        return self.head((x + self.inner(self.second(x)))[:, 0])


class SqueezeExcite(nn.Module):
    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2, 1), nn.ReLU(), nn.Conv2d(2, 8, 1), gate
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


def convolutional(*modules: nn.Module) -> nn.Module:
    end = nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *modules, *end)


class Cosine(nn.Module):
    """A head of unit lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.weight = nn.Linear(192, 8), nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        features = functional.normalize(torch.tanh(self.layer(x.flatten(1))))
        return 10 * functional.linear(features, functional.normalize(self.weight))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Linear(192, 9), nn.Linear(192, 9), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.out(functional.silu(self.left(x)) * self.right(x))


_ATTENTION = [*NORM, "MatrixProduct", "Softmax", "MatrixProduct", *NORM]
NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[str] | None]] = {
    "attention, sdpa": (lambda: Transformer(Attention("sdpa")), _ATTENTION),
    "attention, einsum": (lambda: Transformer(Attention("einsum")), _ATTENTION),
    "attention, products": (lambda: Transformer(Attention("products")), _ATTENTION),
    "an encoder layer": (
        lambda: Transformer(nn.TransformerEncoderLayer(12, 3, 24, batch_first=True)), None,
    ),
    "squeeze-excite": (lambda: convolutional(nn.ReLU(), SqueezeExcite(nn.Sigmoid())), ["Product"]),
    "squeeze-excite, hard": (
        lambda: convolutional(nn.Hardswish(), SqueezeExcite(nn.Hardsigmoid())), ["Product"],
    ),
    "group norm": (lambda: convolutional(nn.GroupNorm(4, 8), nn.ReLU()), NORM),
    "instance norm": (lambda: convolutional(nn.InstanceNorm2d(8), nn.ReLU()), NORM),
    "layer norm of an image": (
        lambda: convolutional(nn.LayerNorm([8, 8, 8]), nn.ReLU()), NORM,
    ),
    "gated linear units": (Gated, ["Product"]),
    "a head of unit lengths": (Cosine, None),
}  # fmt: skip
