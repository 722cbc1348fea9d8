"""Denoisers, data and noise that several test files share."""

import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import get_args

import numpy as np
import torch
import torch.utils._pytree as pytree
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ddimlib import GaussianMixture, NoiseSchedule
from ddimlib.timesteps import Spacing

SPACINGS = get_args(Spacing)
ETAS = [0.0, 0.3, 1.0, "hat"]
BAD_ETAS = [-0.1, 1.1, float("nan"), float("inf"), "tilde", None]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard Gaussian noise, the same on every call."""
    return torch.randn(*shape, dtype=dtype, device="cpu", generator=torch.Generator().manual_seed(seed))


def last(states: Iterable[Tensor]) -> Tensor:
    """x_0: the last of the states that a sampler yields."""
    *_, x = states
    return x


def smooth_mixture() -> GaussianMixture:
    """Three broad bumps in 2×2 pixels: nothing here changes quickly, so orders of convergence show."""
    return GaussianMixture(0.8 * randn(3, 1, 2, 2, seed=1), stds=[0.6, 0.8, 0.7], weights=[1, 2, 3])


def sharp_mixture() -> GaussianMixture:
    """Two almost-points in one pixel: between them the denoiser changes abruptly."""
    return GaussianMixture(torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1), stds=[0.01, 0.01])


class Spy:
    """A denoiser that writes down which times it was asked about, and checks that it was asked properly."""

    def __init__(self, model=lambda x, t: 0.1 * x) -> None:
        self.model = model
        self.times: list[int] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.int64
        assert t.shape == (len(x),)
        assert (t == t[0]).all()
        self.times.append(int(t[0]))
        return self.model(x, t)


class Retimed:
    """A denoiser of the full chain, spoken to in the time of the chain re-spaced to `steps`."""

    def __init__(self, model, steps: list[int]) -> None:
        self.model = model
        self.full_time = torch.tensor([0, *reversed(steps)])

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.model(x, self.full_time[t])


def short_schedule(T: int = 40) -> NoiseSchedule:
    """Few steps that nevertheless end in noise (ᾱ_T is about 3e-4)."""
    return NoiseSchedule.linear(T, 0.002, 0.4)


class Operators(TorchDispatchMode):
    """Writes down every operator that runs, but for views: its name, its first input's dtype, its largest output's size."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, torch.dtype | None, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            dtype = next((x.dtype for x in args if isinstance(x, Tensor)), None)
            size = max((x.numel() for x in pytree.tree_leaves(result) if isinstance(x, Tensor)), default=0)
            self.calls.append((func.name(), dtype, size))
        return result

    def of_size(self, n: int) -> list[str]:
        """Names of the operators with an output of at least n numbers."""
        return [name for name, _, size in self.calls if size >= n]

    def reads_by_host(self) -> list[str]:
        """Operators by which the host looks at numbers of a tensor, and would wait for a GPU.

        The schedule's coefficients are float64 and live on the host in any case; states, times and labels are not float64.
        """
        names = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::_to_copy")
        return [name for name, dtype, _ in self.calls if name in names and dtype not in (None, torch.float64)]


class Alive(TorchDispatchMode):
    """Counts the new tensors of at least n numbers that are in memory at once; `most` is the largest count."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.now, self.most = n, 0, 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = {x.untyped_storage()._cdata for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in pytree.tree_leaves(result):
            if isinstance(x, Tensor) and x.numel() >= self.n:
                storage = x.untyped_storage()
                if storage._cdata not in inputs | self.known:
                    self.now += 1
                    self.most = max(self.most, self.now)
                    self.known.add(storage._cdata)
                    weakref.finalize(storage, self._gone, storage._cdata)
        return result

    def _gone(self, address: int) -> None:
        self.now -= 1
        self.known.discard(address)


class FakeGraphs:
    """Stands in for CUDA graphs where there is no GPU: it records operators and replays them in the same memory.

    As on a GPU, a replay reads and writes the addresses that were recorded, nothing that Python did in between happens again,
    and recording fails when the host looks at a number.
    """

    class CUDAGraph:
        def __init__(self) -> None:
            self.recorded: list[tuple] = []
            self.replays = 0

        def replay(self) -> None:
            self.replays += 1
            for func, args, kwargs, recorded in self.recorded:
                new = pytree.tree_leaves(func(*args, **kwargs))
                for old, fresh in zip(recorded, new, strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != fresh.data_ptr():
                        old.copy_(fresh)

    class graph(TorchDispatchMode):
        def __init__(self, graph: "FakeGraphs.CUDAGraph", pool: object = None) -> None:
            super().__init__()
            self.target = graph
            graph.pool = pool

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.name() == "aten::_local_scalar_dense":
                raise RuntimeError("operation not permitted when stream is capturing")
            result = func(*args, **(kwargs or {}))
            self.target.recorded.append((func, args, kwargs or {}, pytree.tree_leaves(result)))
            return result

    class Stream:
        def wait_stream(self, other: object) -> None:
            pass

    @classmethod
    def install(cls, monkeypatch) -> None:
        for name in ("CUDAGraph", "graph", "Stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(cls, name))
        monkeypatch.setattr(torch.cuda, "current_stream", cls.Stream)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
        for name in ("stream", "device"):
            monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())


def write_colour_images(folder: Path, classes: str = "ab", size: int = 32, per_class: int = 4) -> None:
    """Random images, each class around a colour of its own, where ImageFolder finds them."""
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 200, (len(classes), 3))
    for part in ("train", "test"):
        for k in range(len(classes) * per_class):
            path = folder / part / classes[k % len(classes)] / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = colours[k % len(classes)] + generator.integers(0, 56, (size, size, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(path)
