"""Many processes: joining them under `torchrun`, and drawing a run's images in shards, whichever process draws which."""

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from ddimlib.data import to_bytes
from ddimlib.denoisers import VelocityDenoiser
from ddimlib.samplers import Eta, sample
from ddimlib.schedule import NoiseSchedule
from ddimlib.storage import read_tensors, write_json, write_tensors
from ddimlib.timesteps import Spacing

TIMEOUT = timedelta(hours=1)
"""How long a process waits for another that says nothing. One that ends is noticed at once."""

MANIFEST = "manifest.json"

Value = TypeVar("Value")


# --- processes -------------------------------------------------------------------------------------------------------


@contextmanager
def process_group(device: str, timeout: timedelta = TIMEOUT) -> Iterator[str]:
    """Join the processes that `torchrun` started, and part at the end; in a process started alone, do nothing.

    Tensors on a GPU travel by NCCL, all else by Gloo. SIGTERM, by which `torchrun` ends the others when one process dies,
    becomes a KeyboardInterrupt: what stops cleanly at Ctrl-C stops cleanly then.

    Args:
        device: "cpu", or "cuda" for the GPU of this process's number on its machine.
        timeout: see :data:`TIMEOUT`.

    Yields:
        The device of this process.

    Raises:
        ValueError: when there is no such GPU, see :func:`local_device`.
        RuntimeError: what was raised inside, mostly because another process has gone, with word of how to go on.
    """
    if "LOCAL_RANK" not in os.environ:
        yield device
        return
    device = local_device(device, int(os.environ["LOCAL_RANK"]), torch.cuda.device_count())
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=timeout)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield device
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this process ends now in any case: let it say why
        if isinstance(error, RuntimeError):
            raise RuntimeError(
                f"{error}\nIf another process ended first, it said why. What is finished is kept; "
                "the same command again continues from it."
            ) from error
        raise
    dist.destroy_process_group()  # not after an error: it could wait for a process that is gone
    signal.signal(signal.SIGTERM, before)


def local_device(device: str, local_rank: int, gpus: int) -> str:
    """The device of process `local_rank` of a machine with that many GPUs: "cuda" becomes "cuda:<local_rank>".

    Raises:
        ValueError: when there are fewer GPUs than processes, or one GPU was named for all of them.
    """
    if torch.device(device).type != "cuda":
        return device
    if device != "cuda":
        raise ValueError(
            f"under torchrun each process has a GPU of its own, so not all can use {device}; "
            "give the device cuda, and choose GPUs by CUDA_VISIBLE_DEVICES"
        )
    if local_rank >= gpus:
        raise ValueError(
            f"process {local_rank} of this machine has no GPU, there are {gpus}; use --nproc-per-node {gpus}"
        )
    return f"cuda:{local_rank}"


def rank() -> int:
    """The number of this process, in 0..world_size() - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes work together; 1 for a process that was started alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def exchange(value: Value) -> list[Value]:
    """What each process passed to this call, by rank. It waits for the slowest.

    Raises:
        RuntimeError: when a process has ended, or says nothing for the time given to :func:`process_group`.
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def on_first(action: Callable[[], Value]) -> Value:
    """Do something on rank 0 alone; every process gets the result.

    What `action` raises is raised on rank 0, which says why; the other processes then end quietly, with exit status 2.
    """
    if rank() > 0:
        result, failed = cast(tuple[Value, bool], exchange(None)[0])
        if failed:
            raise SystemExit(2)
        return result
    try:
        result = action()
    except Exception:
        exchange((None, True))
        raise
    exchange((result, False))
    return result


# --- samples ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SamplingConfig:
    """Everything that a run's images depend on, besides the network.

    Attributes:
        n: number of images.
        steps, eta, spacing, seed, guidance, clip: see :func:`ddimlib.sample`.
        labels: classes to draw, in turn: image i is of class labels[i % len(labels)]. None: the network chooses.
        batch_size: images at a time, always exactly so many.
        shard_batches: batches in a shard. A process that is killed loses less than a shard; small ones also share out evenly.

    Raises:
        ValueError: when n, batch_size or shard_batches is not positive, or labels is empty.
    """

    n: int
    steps: int = 50
    eta: Eta = 0.0
    spacing: Spacing = "linspace"
    seed: int = 0
    labels: list[int] | None = None
    guidance: float = 1.0
    clip: float | None = None
    batch_size: int = 64
    shard_batches: int = 8

    def __post_init__(self) -> None:
        for name in ("n", "batch_size", "shard_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.labels == []:
            raise ValueError("labels is empty; name at least one class, or pass None")

    def shards(self) -> dict[str, range]:
        """The images of each shard, by the name of its file."""
        size = self.batch_size * self.shard_batches
        starts = range(0, self.n, size)
        return {f"shard-{i:05d}.safetensors": range(k, min(k + size, self.n)) for i, k in enumerate(starts)}


def sample_shards(
    model: VelocityDenoiser,
    schedule: NoiseSchedule,
    config: SamplingConfig,
    out: str | Path,
    facts: dict[str, Any],
    progress: bool = True,
) -> dict[str, Any]:
    """Draw the images of `config` into `out`, together with the other processes, from where the folder was left.

    A shard is a file `shard-<number>.safetensors` of consecutive images: "images", uint8 [count, C, H, W] in 0..255, which is
    what programs that measure FID take, and "labels", int64 [count], if classes were asked for. The processes draw the shards
    that are missing, in turns of one shard each. A shard is written whole or not at all, and the folder is the whole state:
    whoever starts again, with any number of processes, finds what is there and draws the rest. `manifest.json` is brought up to
    date after every turn: "settings", "complete", "shards" (file, first, count, sha256), "provenance" (one for each start).

    Image i depends on the settings and i alone. Batches start at multiples of batch_size and are always full (the last is
    filled with images past n, which are dropped), so it is even computed in the same company: with the same device, versions
    and number of threads, the shards are the same bytes for any number of processes, interrupted or not, and for any n as far
    as they go. With another batch size, device or number of threads, kernels may round differently: then a byte here and
    there can be one level off.

    Args:
        model: a denoiser with `image_shape`; with classes, one called as model(x, t, labels).
        schedule: its noise schedule.
        config: what to draw.
        out: a folder, on a disk that all processes see.
        facts: where the images come from, as from `ddimlib.provenance`.
        progress: show a progress bar (on rank 0).

    Returns:
        The manifest.

    Raises:
        ValueError: when the folder holds images of another network or other settings, or a shard is damaged; when the processes
            do not agree on network and settings; when `config` does not suit the network.
        RuntimeError: when another process ended or fell silent.
        FloatingPointError: when the network returns NaN or infinity.
    """
    out = Path(out)
    settings = {"weights": weights_digest(model), "shape": list(model.image_shape)} | asdict(config)
    if any(other != settings for other in exchange(settings)):
        raise ValueError("the processes differ in network or settings; give all of them the same files and options")
    shards = config.shards()
    manifest = on_first(lambda: _resume(out, settings, shards, facts | {"processes": world_size()}))
    entries = manifest["shards"]
    missing = sorted(shards.keys() - {entry["file"] for entry in entries})
    quiet = not progress or rank() > 0
    with tqdm(
        total=config.n, desc="sampling", unit="image", initial=_count(entries), smoothing=0, disable=quiet
    ) as bar:
        for turn in range(0, len(missing), world_size()):
            mine = missing[turn : turn + world_size()][rank() : rank() + 1]  # none, when too few are left for all
            new = [_draw(model, schedule, config, settings, out / name, shards[name], bar) for name in mine]
            entries = sorted([*entries, *chain(*exchange(new))], key=lambda entry: entry["first"])
            manifest |= {"complete": len(entries) == len(shards), "shards": entries}
            if rank() == 0:
                write_json(out / MANIFEST, manifest)
            bar.update(_count(entries) - bar.n)  # with what the others drew meanwhile
    return manifest


def load_samples(folder: str | Path) -> tuple[Tensor, Tensor | None]:
    """The images that :func:`sample_shards` drew, in order.

    Returns:
        images, uint8 [n, C, H, W] in 0..255, and labels, int64 [n], or None.

    Raises:
        FileNotFoundError: when there is no manifest, or a shard is gone.
        ValueError: when the run is not complete, or a shard is not what the manifest says.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    if not manifest:
        raise FileNotFoundError(f"no file {folder / MANIFEST}; `sample --out {folder}` writes it")
    if not manifest["complete"]:
        raise ValueError(f"the run in {folder} is not complete; start its command again to draw the rest")
    for entry in manifest["shards"]:
        _check_digest(folder / entry["file"], entry["sha256"])
    shards = [read_tensors(folder / entry["file"])[0] for entry in manifest["shards"]]
    labels = torch.cat([shard["labels"] for shard in shards]) if "labels" in shards[0] else None
    return torch.cat([shard["images"] for shard in shards]), labels


def _draw(
    model: VelocityDenoiser,
    schedule: NoiseSchedule,
    config: SamplingConfig,
    settings: dict[str, Any],
    path: Path,
    wanted: range,
    bar: tqdm,
) -> dict[str, Any]:
    """Draw the images `wanted` and write them as one shard; returns its entry in the manifest."""
    classes = None if config.labels is None else torch.tensor(config.labels)
    images, labels = [], []
    for start in wanted[:: config.batch_size]:
        batch = torch.arange(start, start + config.batch_size)  # full, even where fewer are wanted
        chosen = None if classes is None else classes[batch % len(classes)]
        drawn = sample(
            model, schedule, (len(batch), *model.image_shape), config.steps, config.eta, config.spacing, config.seed,
            labels=chosen, guidance=config.guidance, clip=config.clip, batch_size=len(batch), first=start,
        )  # fmt: skip
        images.append(to_bytes(drawn).cpu())
        labels += [] if chosen is None else [chosen]
        bar.update(min(len(batch), wanted.stop - start))
    parts = {"images": images} | ({"labels": labels} if labels else {})
    tensors = {name: torch.cat(values)[: len(wanted)] for name, values in parts.items()}
    write_tensors(path, tensors, {"settings": settings, "first": wanted.start})
    return _entry(path, wanted)


def _resume(out: Path, settings: dict[str, Any], shards: dict[str, range], facts: dict[str, Any]) -> dict[str, Any]:
    """The manifest of what the folder holds already, each shard checked; written if there is any."""
    manifest = _read_manifest(out)
    _check_settings(out / MANIFEST, manifest.get("settings", settings), settings)
    listed = {entry["file"]: entry["sha256"] for entry in manifest.get("shards", [])}
    for pattern in (".shard-*.tmp", f".{MANIFEST}.*.tmp"):
        for half_written in out.glob(pattern):  # by a process that was killed
            half_written.unlink()
    entries = []
    for name, images in shards.items():
        path = out / name
        if path.exists():
            if name in listed:  # else it was written after the last manifest
                _check_digest(path, listed[name])
            _check_settings(path, read_tensors(path)[1].get("settings"), settings)
            entries.append(_entry(path, images))
    complete = len(entries) == len(shards)
    starts = manifest.get("provenance", []) + ([] if complete else [facts])
    manifest = {"settings": settings, "complete": complete, "shards": entries, "provenance": starts}
    if entries:
        write_json(out / MANIFEST, manifest)
    return manifest


def _read_manifest(out: Path) -> dict[str, Any]:
    path = out / MANIFEST
    return json.loads(path.read_text()) if path.exists() else {}


def _entry(path: Path, images: range) -> dict[str, Any]:
    return {"file": path.name, "first": images.start, "count": len(images), "sha256": _digest(path)}


def _count(entries: list[dict[str, Any]]) -> int:
    return sum(entry["count"] for entry in entries)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check_digest(path: Path, listed: str) -> None:
    if _digest(path) != listed:
        raise ValueError(
            f"{path} is not the file that {MANIFEST} lists; remove it, and the run's command draws it again"
        )


def _check_settings(path: Path, found: Any, settings: dict[str, Any]) -> None:
    if found == settings:
        return
    theirs = found if isinstance(found, dict) else {}
    named = [f"{k} = {theirs.get(k)!r}, not {v!r}" for k, v in settings.items() if k not in theirs or theirs[k] != v]
    raise ValueError(
        f"{path} belongs to a run with other settings ({'; '.join(named)}); repeat that run's options, or choose another folder"
    )
