"""The noise-prediction network: a U-Net that reads x_t and t and returns one number per pixel."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddimlib.arguments import KindError, check_floats, check_int, check_labels, check_number, describe
from ddimlib.torch_defaults import torch_defaults


def time_features(t: Tensor, size: int) -> Tensor:
    """Sines and cosines of t [B], at wavelengths from 2π to 2π·10⁴ timesteps: float32 [B, size], `size` being even (Vaswani
    et al. 2017, section 3.5)."""
    place = torch.arange(size // 2, dtype=torch.float32, device=t.device)
    angle = t.float()[:, None] * torch.exp(-math.log(1e4) * place / (size // 2 - 1))
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def _zero(layer: nn.Module) -> nn.Module:
    """`layer`, whose output is 0 until it is trained."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut; the embedding of (t, class) shifts and scales between them."""

    def __init__(self, in_width: int, out_width: int, embedding: int, dropout: float, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_width)
        self.conv1 = nn.Conv2d(in_width, out_width, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * out_width)
        self.norm2 = nn.GroupNorm(groups, out_width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _zero(nn.Conv2d(out_width, out_width, 3, padding=1))  # the block starts as its shortcut
        self.shortcut = nn.Identity() if in_width == out_width else nn.Conv2d(in_width, out_width, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(h)))


class SelfAttention(nn.Module):
    """Every pixel looks at every other: about one head per 32 channels, around a shortcut."""

    def __init__(self, width: int, groups: int = 8) -> None:
        super().__init__()
        self.heads = next(n for n in range(max(1, width // 32), 0, -1) if width % n == 0)
        self.norm = nn.GroupNorm(groups, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = _zero(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # each [B, heads, H·W, C/heads]
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(-1, -2).reshape(b, c, h, w))


class Stage(nn.Module):
    """A residual block, then attention where the level asks for it."""

    def __init__(self, in_width: int, out_width: int, embedding: int, dropout: float, attend: bool, groups: int):
        super().__init__()
        self.block = ResidualBlock(in_width, out_width, embedding, dropout, groups)
        self.attention = SelfAttention(out_width, groups) if attend else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.block(x, embedding))


class UNet(nn.Module):
    """A U-Net: down through the levels and up again, with a shortcut across at every level (Ho et al. 2020, app. B).

    Level i works at resolution H / 2^i with `widths[i]` channels, multiples of `groups`. It has `blocks[i]` residual blocks,
    each with self-attention if `attention[i]`, on the way down and as many on the way up; the lowest level is passed once. A
    narrow first level keeps the full resolution cheap.

    Args:
        channels: image channels C.
        image_size: side of the images it is trained at, or (height, width); others work too, if every level halves them evenly.
        num_classes: number of class labels, or None for a network without labels.
        dropout: probability, in [0, 1).
        groups: groups of each GroupNorm (Wu & He 2018). On a CPU few are quick: with two channels a group, the norms of the
            first level take longer than its convolutions.
    """

    @torch_defaults()
    def __init__(
        self, channels: int = 1, widths: Sequence[int] = (16, 48, 96), blocks: Sequence[int] = (1, 1, 4),
        attention: Sequence[bool] = (False, False, True), image_size: int | Sequence[int] = 28,
        num_classes: int | None = None, dropout: float = 0.0, groups: int = 8,
    ) -> None:  # fmt: skip
        super().__init__()
        levels = (widths, blocks, attention)
        if not all(isinstance(x, list | tuple) and len(x) == len(widths) > 0 for x in levels):
            raise ValueError(f"widths, blocks and attention must be lists, one entry a level, got {levels}")
        # beyond the upper limits a network would build for ever
        channels, groups = check_int("channels", channels, 1, 64), check_int("groups", groups, 1)
        widths = [check_int("each width", width, 1, 4096) for width in widths]
        blocks = [check_int("blocks", n, 1, 64) for n in blocks]
        num_classes = None if num_classes is None else check_int("num_classes", num_classes, 1, 10**6)
        if bad := [w for w in widths if w % groups]:
            raise ValueError(f"widths must be multiples of {groups} (GroupNorm has {groups} groups), got {bad}")
        if any(entry not in (False, True) for entry in attention):
            raise ValueError(f"attention must be True or False for each level, got {attention}")
        if check_number("dropout", dropout, 0) >= 1:
            raise ValueError(f"dropout must be below 1, got {dropout}; it is the probability to drop a number")
        lowest = len(widths) - 1
        self.scale = 2**lowest
        size = image_size if isinstance(image_size, list | tuple) else (image_size, image_size)
        if len(size) != 2 or any(check_int("image_size", side, 1) % self.scale for side in size):
            why = f"so that {len(widths)} levels halve it evenly, got {image_size}; pad or resize the images"
            raise ValueError(f"image_size must be one or two multiples of {self.scale}, {why}")
        self.image_shape = (channels, int(size[0]), int(size[1]))
        self.num_classes = num_classes
        self.time_mlp = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 128))
        # one row more than there are classes: the last stands for "no label"
        self.label_embedding = None if num_classes is None else nn.Embedding(num_classes + 1, 128)

        def stages_of(in_width: int, level: int) -> nn.ModuleList:
            ins, w = [in_width] + [widths[level]] * (blocks[level] - 1), widths[level]
            return nn.ModuleList(Stage(i, w, 128, dropout, attention[level], groups) for i in ins)

        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(stages_of(widths[i], i) for i in range(lowest))
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.bottom = stages_of(widths[lowest], lowest)
        grow = (nn.Sequential(nn.Conv2d(b, a, 1), nn.Upsample(scale_factor=2)) for a, b in pairwise(widths))
        self.grow = nn.ModuleList(grow)
        self.up = nn.ModuleList(stages_of(2 * widths[i], i) for i in range(lowest))
        self.head = nn.Sequential(
            nn.GroupNorm(groups, widths[0]), nn.SiLU(), _zero(nn.Conv2d(widths[0], channels, 3, padding=1))
        )

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        check_floats("x", x)
        channels = self.image_shape[0]
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % self.scale or x.shape[3] % self.scale:
            wanted = f"[B, {channels}, H, W] with H and W multiples of {self.scale}"
            raise ValueError(f"this network takes {wanted}, got {tuple(x.shape)}")
        for name, value in (("t", t), ("labels", t if labels is None else labels)):
            if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
                raise KindError(f"{name} must be int64 [B], one for each of {len(x)} images, got {describe(value)}")
        embedding = self.time_mlp(time_features(t, 64).to(x.dtype))
        if self.label_embedding is not None:
            none = torch.full_like(t, self.label_embedding.num_embeddings - 1)
            embedding = embedding + self.label_embedding(none if labels is None else labels)
        elif labels is not None:
            check_labels(labels, None)  # says that there are none
        embedding = F.silu(embedding)

        h, across = self.stem(x), []
        for stages, shrink in zip(self.down, self.shrink, strict=True):
            h = _through(stages, h, embedding)
            across.append(h)
            h = shrink(h)
        h = _through(self.bottom, h, embedding)
        for stages, grow, same_level in zip(reversed(self.up), reversed(self.grow), reversed(across), strict=True):
            h = _through(stages, torch.cat([grow(h), same_level], dim=1), embedding)
        return self.head(h)


def _through(stages: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
    for stage in stages.children():
        h = stage(h, embedding)
    return h
