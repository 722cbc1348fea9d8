"""torch's own defaults, for what is built of its layers and of other libraries' parts."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Within the block, or a function so decorated, what torch makes is float32 and on the CPU, whatever the user's defaults.

    For what is built of other libraries' parts; our own calls name dtype and device.
    """
    before = torch.get_default_dtype()
    changed = before != torch.float32  # the whole process shares it, so the usual one is not touched
    if changed:
        torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        if changed:
            torch.set_default_dtype(before)
