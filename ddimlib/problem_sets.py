"""What the cells of the problem sets check a solution with: its value beside the formula's, and the slip that explains it."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class CheckFailed(AssertionError):
    """A value is not what the formula gives; the message says what was seen, what was expected, and the likely slip."""


def compare(
    what: str, seen: Any, expected: Any, slips: Mapping[str, Any] | None = None, tolerance: float = 1e-4
) -> None:
    """Do nothing if `seen` is `expected`; otherwise say how they differ, and which slip gives just what was seen.

    Args:
        what: names the value, as in "noisy(…) at t = 2".
        seen: a tensor or a number.
        expected: a tensor or a number; a tensor asks for its shape.
        slips: what would have been seen instead, after each of some slips: {"with ᾱ in place of √ᾱ": value}.
        tolerance: largest difference allowed, as a share of `1 + |expected|`.

    Raises:
        CheckFailed: when they differ.
    """
    wanted = torch.as_tensor(expected, dtype=torch.float64, device="cpu")
    kind = str(seen.dtype) if isinstance(seen, Tensor) else getattr(seen, "kind", None) or type(seen).__name__
    if "complex" in kind:
        raise CheckFailed(
            f"{what} is complex: somewhere the root of a negative number was taken. The root is not what is wrong "
            f"then; the variance under it is. It should be {_shape_in_words(wanted)}."
        )
    if not isinstance(seen, Tensor | int | float) or isinstance(seen, bool):
        kind = "None (is there a `return`?)" if seen is None else kind
        raise CheckFailed(f"{what} is {kind}, but should be {_shape_in_words(wanted)}.")
    value = torch.as_tensor(seen, device="cpu").detach().cpu()
    value = value.to(torch.float64)
    fits = value.shape == wanted.shape
    if fits and value.numel() and not value.isfinite().all():
        raise CheckFailed(
            f"{what} holds NaN or infinity. Is there a division by 0, the root of a negative number, or the arccos of "
            "a number that is no cosine?"
        )
    if fits and _close(value, wanted, tolerance):
        return
    if fits:
        message = f"{what}: {_difference(value, wanted)}"
    else:
        message = f"{what} is {_shape_in_words(value)}, but should be {_shape_in_words(wanted)}."
    for hint, wrong in (slips or {}).items():
        other = torch.as_tensor(wrong, dtype=torch.float64, device="cpu")
        if other.shape != value.shape or not _close(value, other, tolerance):
            continue
        if not fits or not _close(other, wanted, tolerance):
            raise CheckFailed(f"{message} That is what comes out {hint}.")
    raise CheckFailed(message)


@contextmanager
def explain(fragment: str, hint: str) -> Iterator[None]:
    """Add a hint to an exception whose text has `fragment` in it, in small letters or capitals."""
    try:
        yield
    except CheckFailed:
        raise
    except Exception as error:
        if fragment.lower() not in f"{type(error).__name__} {error}".lower():
            raise
        raise CheckFailed(f"{error}. {hint}") from error


def fresh() -> torch.Generator:
    """A generator for random cases: new ones at each call, but the same ones for everybody in one round of grading."""
    seed = os.environ.get("DDIM_GRADING_SEED")
    return torch.Generator("cpu").manual_seed(int(seed) if seed else int.from_bytes(os.urandom(4), "big"))


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool(((a - b).abs() <= tolerance * (1 + b.abs())).all())


def _difference(value: Tensor, wanted: Tensor) -> str:
    if value.numel() <= 6:
        yours, right = (", ".join(f"{v:.4g}" for v in x.flatten().tolist()) for x in (value, wanted))
        if value.numel() > 1:
            yours, right = f"[{yours}]", f"[{right}]"
        return f"yours is {yours}, the formula gives {right}."
    i = int((value - wanted).abs().argmax())
    text = f"where they differ most, yours is {value.flatten()[i]:.4g} and the formula gives {wanted.flatten()[i]:.4g}"
    if value.numel() >= 100:
        text += f"; your mean is {value.mean():.3g} and your variance {value.var():.3g}, "
        text += f"expected {wanted.mean():.3g} and {wanted.var():.3g}"
    return text + "."


def _shape_in_words(x: Tensor) -> str:
    return f"a tensor of shape {tuple(x.shape)}" if x.ndim else "a single number"
