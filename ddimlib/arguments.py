"""What enters the library is checked where it enters, once: numbers, tensors, images, labels.

A value of the wrong kind raises :class:`KindError`, which is both a TypeError and a ValueError; any other bad value raises
ValueError. The message says what was given, what is expected and how to mend it.
"""

import math
import warnings
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor


class KindError(TypeError, ValueError):
    """An argument of the wrong kind, such as a string where a number belongs. Either base class catches it."""


def check_int(name: str, value: Any, low: int | None = None, high: int | None = None, fix: str = "") -> int:
    """`value` as an int, NumPy's integers included; within low..high where these are given. `fix` ends the message."""
    if type(value) is not int:  # samplers ask at every step: plain ints are let through quickly
        if isinstance(value, Tensor) and value.ndim == 0 and not value.is_floating_point():
            value = value.item()
        if isinstance(value, bool | np.bool_) or not isinstance(value, Integral):
            raise KindError(f"{name} must be an integer, got {describe(value)}{fix and '; ' + fix}")
    if (low is not None and value < low) or (high is not None and value > high):
        limits = f"lie in {low}..{high}" if high is not None else f"be at least {low}"
        raise ValueError(f"{name} must {limits}, got {value}{fix and '; ' + fix}")
    return int(value)


def check_number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, above: bool = False, fix: str = ""
) -> float:
    """`value` as a finite float in [low, high], or in (low, high] with `above`; NumPy's and 0-d tensors are accepted."""
    if type(value) is not float:
        if isinstance(value, Tensor) and value.ndim == 0:
            value = value.item()
        if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
            raise KindError(f"{name} must be a number, got {describe(value)}{fix and '; ' + fix}")
        try:
            value = float(value)
        except OverflowError:  # a whole number of more than 308 digits
            value = math.inf
    if not (math.isfinite(value) and low <= value <= high and not (above and value == low)):
        limit = f" {'above' if above else 'of at least'} {low:g}" if low > -math.inf else ""
        limit += f", at most {high:.9g}" if value > high else ""
        raise ValueError(f"{name} must be a finite number{limit}, got {value}{fix and '; ' + fix}")
    return value


def as_numbers(name: str, values: Any, dtype: torch.dtype | None = None, fix: str = "") -> Tensor:
    """A number, a list or an array as a tensor on the host; a tensor stays where it is. Raises for all else, and for bools."""
    try:
        if isinstance(values, list | tuple) and any(isinstance(value, bool) for value in values):
            raise TypeError  # torch takes True for 1
        found = values if isinstance(values, Tensor) else torch.as_tensor(values, dtype=dtype, device="cpu")
        if dtype is not None and found.is_complex():
            raise TypeError
        return found if dtype is None else found.detach().to("cpu", dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise KindError(f"{name} must be numbers, got {describe(values)}{fix and '; ' + fix}") from error


def check_floats(name: str, x: Any, fix: str = "") -> None:
    """Raise unless x is a tensor of floating-point numbers; looks at no value, so that no GPU is waited for."""
    if not isinstance(x, Tensor):
        raise KindError(f"{name} must be a tensor, got {describe(x)}{fix and '; ' + fix}")
    if not x.is_floating_point():
        usual = "to_model_range turns bytes into images in [-1, 1]" if x.dtype == torch.uint8 else "use x.float()"
        raise ValueError(f"{name} must be a floating-point tensor, got {x.dtype}; {fix or usual}")


def check_batch(name: str, x: Tensor) -> None:
    """Raise unless x is [B, C, H, W] and not empty."""
    if x.ndim != 4 or x.numel() == 0:
        got = f"got shape {tuple(x.shape)}; x[None] adds a batch of 1"
        raise ValueError(f"{name} must be [B, C, H, W] and not empty, {got}")


def check_finite(name: str, x: Any, batch: bool = True) -> None:
    """Raise unless x is a floating-point tensor without NaN and infinity, and with `batch` [B, C, H, W]."""
    check_floats(name, x)
    if batch:
        check_batch(name, x)
    if not x.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinity; look for a division by zero where it was made")


def check_images(name: str, images: Any) -> None:
    """Raise unless `images` are floating point, finite, [N, C, H, W] and about in [-1, 1]; warn when they lie in [0, 1]."""
    check_finite(name, images)
    low, high = (float(x) for x in images.detach().aminmax())
    if max(-low, high) > 16:
        raise ValueError(
            f"{name} must lie about in [-1, 1], got values in [{low:g}, {high:g}]; if they are 0..255, use x / 127.5 - 1"
        )
    if low >= 0 and 0 < high <= 1 and low < high:
        warnings.warn(
            f"{name} lie in [{low:g}, {high:g}], but images are expected in [-1, 1], black at -1; if they are in [0, 1], as "
            "torchvision's ToTensor makes them, use 2 * x - 1",
            stacklevel=3,
        )


def check_bytes(name: str, images: Any) -> None:
    """Raise unless `images` are bytes 0..255, uint8 [N, C, H, W]."""
    if not isinstance(images, Tensor):
        raise KindError(f"{name} must be a tensor, got {describe(images)}")
    if images.dtype != torch.uint8:
        fix = "to_bytes turns images in [-1, 1] into bytes"
        raise ValueError(f"{name} must be bytes 0..255, got {images.dtype}; {fix}")
    check_batch(name, images)


def check_labels(labels: Any, num_classes: int | None, n: int | None = None) -> Tensor:
    """`labels` as an int64 tensor, each in 0..num_classes - 1: [N] for a list, an array or a tensor, [] for one int.

    Args:
        labels: one label for each image, in their order; or an int, the label of all.
        num_classes: of the network; None for one without labels.
        n: number of images; None where it is not known yet.
    """
    if num_classes is None:
        raise ValueError(
            "labels were given, but this network was built without classes; leave the labels out, or set num_classes on a "
            "network of your own that is called as model(x, t, labels)"
        )
    found = as_numbers("labels", labels, fix="use a list such as [3, 1, 4]")
    if found.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64) or found.ndim > 1:
        raise ValueError(
            f"labels must be int64 [B], got {found.dtype} {tuple(found.shape)}; use a list or a tensor such as [3, 1, 4]"
        )
    if n is not None and found.ndim:
        check_as_many(found, n)
    if found.numel() and (int(found.min()) < 0 or int(found.max()) >= num_classes):
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {found.min()}..{found.max()}")
    return found.long()


def check_as_many(labels: Tensor, n: int) -> None:
    """Raise unless there is one label for each of n images."""
    if labels.shape != (n,):
        found = "×".join(str(size) for size in labels.shape)
        raise ValueError(f"{found} labels for a batch of {n}; give one label for each, in their order")


def check_pair(name_a: str, a: Any, name_b: str, b: Any) -> None:
    """Raise unless a and b are floating-point tensors of one shape: torch would broadcast them."""
    check_floats(name_a, a)
    check_floats(name_b, b)
    if a.shape != b.shape:
        raise ValueError(f"{name_a} and {name_b} must have the same shape, got {tuple(a.shape)} and {tuple(b.shape)}")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise unless `value` is one of the words."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {describe(value)}")


def check_clip(clip: Any) -> None:
    """Raise unless `clip` is None, "dynamic", or a positive number."""
    if clip is not None and clip != "dynamic":
        check_number("clip", clip, 0, 1e4, above=True, fix='data in [-1, 1] wants clip = 1, or "dynamic"')


def check_guidance(guidance: Any, labels: Any) -> None:
    """Raise unless `guidance` is finite and at least 0, and has labels to guide towards where it is not 1."""
    if check_number("guidance", guidance, 0, 1e4, fix="1 is none") != 1 and labels is None:
        raise ValueError(f"guidance = {guidance} needs labels to guide towards; pass labels, or leave guidance at 1")


def describe(value: Any) -> str:
    """A value in a message: its type, and itself where that is short."""
    if isinstance(value, Tensor):
        return f"a tensor {value.dtype} {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}… ({type(value).__name__})"
