"""Many processes: joining them under `torchrun`, and sharing out the images of a run among them."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from ddimlib.arguments import as_numbers, check_clip, check_guidance, check_int, check_labels
from ddimlib.data import to_bytes
from ddimlib.denoisers import VelocityDenoiser
from ddimlib.provenance import check_settings, model_settings
from ddimlib.samplers import Clip, Eta, ddim_sigma, sample
from ddimlib.schedule import NoiseSchedule
from ddimlib.storage import check_output, locked, read_json, read_tensors, write_json, write_tensors
from ddimlib.timesteps import Spacing, timesteps

TIMEOUT = timedelta(hours=1)
"""How long a process waits for another that says nothing. One that ends is noticed at once."""

MANIFEST = "manifest.json"

Value = TypeVar("Value")


# --- processes -------------------------------------------------------------------------------------------------------


@contextmanager
def process_group(device: str, timeout: timedelta = TIMEOUT) -> Iterator[str]:
    """Join the processes that `torchrun` started, and part at the end; in a process started alone, do nothing.

    Tensors on a GPU travel by NCCL, all else by Gloo. SIGTERM, by which `torchrun` ends the others when one process dies,
    becomes a KeyboardInterrupt: what stops cleanly at Ctrl-C stops cleanly then. A RuntimeError that is raised inside, mostly
    because another process has gone, gets word of how to go on.

    Args:
        device: "cpu", or "cuda" for the GPU of this process's number on its machine.
        timeout: see :data:`TIMEOUT`.

    Yields:
        The device of this process, see :func:`local_device`.
    """
    if "LOCAL_RANK" not in os.environ:
        yield device
        return
    device = local_device(device, int(os.environ["LOCAL_RANK"]), torch.cuda.device_count())
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=timeout)
        yield device
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this process ends now in any case: let it say why
        if isinstance(error, RuntimeError):
            reason = str(error).partition("\nException raised from")[0]  # torch appends its C++ frames
            raise RuntimeError(
                f"{reason}\nIf another process ended first, it said why. What is finished is kept; "
                "the same command again continues from it."
            ) from error
        raise
    dist.destroy_process_group()  # not after an error: it could wait for a process that is gone
    signal.signal(signal.SIGTERM, before)


def local_device(device: str, local_rank: int, gpus: int) -> str:
    """The device of process `local_rank` of a machine with that many GPUs: "cuda" becomes "cuda:<local_rank>"."""
    if torch.device(device).type != "cuda":
        return device
    if device != "cuda":
        fix = "give the device cuda, and choose GPUs by CUDA_VISIBLE_DEVICES"
        raise ValueError(f"under torchrun each process has a GPU of its own, so not all can use {device}; {fix}")
    if local_rank >= gpus:
        fix = f"use --nproc-per-node {gpus}"
        raise ValueError(f"process {local_rank} of this machine has no GPU, there are {gpus}; {fix}")
    return f"cuda:{local_rank}"


def rank() -> int:
    """The number of this process, in 0..world_size() - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes work together; 1 for a process that was started alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def exchange(value: Value) -> list[Value]:
    """What each process passed to this call, by rank. It waits for the slowest; a RuntimeError says when one has gone."""
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
        labels: a class, or classes to draw in turn: image i is of class labels[i % len(labels)]. None: the network chooses.
        batch_size: images at a time, always exactly so many, and images in a file.
    """

    n: int
    steps: int = 50
    eta: Eta = 0.0
    spacing: Spacing = "linspace"
    seed: int = 0
    labels: Sequence[int] | None = None
    guidance: float = 1.0
    clip: Clip = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name, most in (("n", 10**8), ("steps", None), ("batch_size", None)):
            check_int(name, getattr(self, name), 1, most)
        check_int("seed", self.seed, 0, 2**32 - 1)
        if self.labels is not None and not as_numbers("labels", self.labels).numel():
            raise ValueError("labels is empty; name at least one class, or pass None")
        check_guidance(self.guidance, self.labels)
        check_clip(self.clip)

    def shards(self) -> dict[str, range]:
        """The images of each file, by its name. The last file is full, too: what is past n is not read back."""
        size = self.batch_size
        return {f"shard-{i:05d}.safetensors": range(i * size, (i + 1) * size) for i in range(-(-self.n // size))}

    def labels_of(self, images: range) -> Tensor | None:
        """The classes of these images, int64; None: the network chooses."""
        if self.labels is None:
            return None
        labels = as_numbers("labels", self.labels).reshape(-1)  # one class may stand for itself
        return labels[torch.arange(images.start, images.stop, device="cpu") % len(labels)]

    def draw(self, model: VelocityDenoiser, schedule: NoiseSchedule, images: range, progress: bool = False) -> Tensor:
        """These images, [N, C, H, W] in [-1, 1]."""
        return sample(
            model, schedule, (len(images), *model.image_shape), self.steps, self.eta, self.spacing, self.seed,
            labels=self.labels_of(images), guidance=self.guidance, clip=self.clip, batch_size=self.batch_size,
            progress=progress, first=images.start,
        )  # fmt: skip


def sample_shards(
    model: VelocityDenoiser,
    schedule: NoiseSchedule,
    config: SamplingConfig,
    out: str | Path,
    facts: dict[str, Any],
    progress: bool = True,
) -> dict[str, Any]:
    """Draw the images of `config` into `out`, together with the other processes, from where the folder was left.

    Of the files that are missing, process r of R draws every R-th, from the r-th on. A file holds one batch: "images", uint8
    [batch_size, C, H, W] in 0..255, which is what programs that measure FID take, and "labels", int64 [batch_size], if classes
    were asked for. It is written whole or not at all, and holds its settings and its place. So the folder is the whole state:
    whoever starts again, with any number of processes or a larger n, finds what is there and draws the rest.
    `manifest.json` holds "settings", "n", "complete" and "provenance" (an entry for each start).

    Image i depends on the settings and i alone. Batches start at multiples of batch_size and are always full, so it is even
    computed in the same company: with the same device, versions and number of threads, the files are the same bytes for any
    number of processes, interrupted or not, and for any n as far as they go. With another batch size, device or number of
    threads, kernels may round differently: then a byte here and there can be one level off.

    Args:
        model, schedule: a denoiser with `image_shape`, and its noise schedule.
        config: what to draw.
        out: a folder, on a disk that all processes see.
        facts: where the images come from, as from `ddimlib.provenance`.
        progress: show a progress bar (on rank 0).

    Returns:
        The manifest.

    Raises:
        ValueError: when the folder holds images of another network or other settings, more images, or a damaged file; when the
            processes do not agree on network and settings; when `config` does not suit the network.
        RuntimeError: when another process ended or fell silent. OSError: when `out` cannot be written.
    """
    out, size = Path(out), config.batch_size
    ddim_sigma(schedule, timesteps(schedule.T, config.steps, config.spacing)[0], 0, config.eta)
    if config.labels is not None:
        check_labels(config.labels, model.num_classes)
    settings = model_settings(model, schedule) | {"shape": list(model.image_shape)} | asdict(config)
    if any(other != settings for other in exchange(settings)):
        raise ValueError("the processes differ in network or settings; give all of them the same files and options")
    del settings["n"]  # a folder may grow
    shards = config.shards()
    missing = on_first(lambda: _resume(out, settings, config, facts | {"processes": world_size()}))
    quiet = not progress or rank() > 0
    done = config.n - min(config.n, size * len(missing))
    with tqdm(total=config.n, desc="sampling", unit="image", initial=done, smoothing=0, disable=quiet) as bar:
        for name in missing[rank() :: world_size()]:
            images, labels = shards[name], config.labels_of(shards[name])
            tensors = {"images": to_bytes(config.draw(model, schedule, images)).cpu()}
            tensors |= {} if labels is None else {"labels": labels}
            write_tensors(out / name, tensors, {"settings": settings, "first": images.start})
            bar.update(min(size * world_size(), config.n - bar.n))
        exchange(None)  # all have drawn their part
        bar.update(config.n - bar.n)
    return on_first(lambda: _write_manifest(out, settings, config.n, complete=True))


def load_samples(folder: str | Path) -> tuple[Tensor, Tensor | None]:
    """The images that :func:`sample_shards` drew, in order: uint8 [n, C, H, W] in 0..255, and labels, int64 [n], or None.

    Raises:
        FileNotFoundError: when there is no manifest, or a file is gone.
        ValueError: when the run is not complete, or a file is not what it should be.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    if not manifest:
        raise FileNotFoundError(f"no file {folder / MANIFEST}; `ddimlib sample --out {folder}` writes it")
    if not manifest["complete"]:
        raise ValueError(f"the run in {folder} is not complete; start its command again to draw the rest")
    try:
        settings = manifest["settings"]
        config = SamplingConfig(manifest["n"], **{f.name: settings[f.name] for f in fields(SamplingConfig)[1:]})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / MANIFEST} does not describe a run of images ({error!r}); restore it") from error
    shards = [_read_shard(folder / name, settings, config, images) for name, images in config.shards().items()]
    labels = None if config.labels is None else torch.cat([shard["labels"] for shard in shards])[: config.n]
    return torch.cat([shard["images"] for shard in shards])[: config.n], labels


def _read_manifest(folder: Path) -> dict[str, Any]:
    """What the folder says of itself; nothing, if it says nothing yet."""
    if not (folder / MANIFEST).exists():
        return {}
    manifest = read_json(folder / MANIFEST)
    kinds = {"settings": dict, "n": int, "complete": bool, "provenance": list}
    if wrong := [key for key, kind in kinds.items() if type(manifest.get(key)) is not kind]:
        raise ValueError(f"{folder / MANIFEST} does not describe a run of images ({', '.join(wrong)}); restore it")
    return manifest


def _read_shard(path: Path, settings: dict[str, Any], config: SamplingConfig, images: range) -> dict[str, Tensor]:
    """The tensors of one file, of which nothing is believed: neither number and place nor settings, shapes and labels."""
    try:
        tensors, facts = read_tensors(path)
        check_settings(path, facts.get("settings"), settings)
        labels = config.labels_of(images)
        shape = (len(images), *settings["shape"])
        if facts.get("first") != images.start or "images" not in tensors or tensors["images"].shape != shape:
            raise ValueError(f"{path} does not hold the images {images.start} to {images.stop - 1} of this run")
        if tensors["images"].dtype != torch.uint8 or (
            labels is not None and not torch.equal(tensors["labels"], labels)
        ):
            raise ValueError(f"{path} holds other labels or numbers than this run draws")
    except (ValueError, KeyError) as error:
        raise ValueError(f"{error}. If you remove the file, this run's command draws it again") from error
    return tensors


def _resume(out: Path, settings: dict[str, Any], config: SamplingConfig, facts: dict[str, Any]) -> list[str]:
    """The names of the files that are missing in the folder; those that are there are checked."""
    check_output(out, folder=True)
    manifest = _read_manifest(out)
    if manifest:
        check_settings(out / MANIFEST, manifest["settings"], settings)
        if manifest["n"] > config.n:
            raise ValueError(f"{out} holds n = {manifest['n']} images, more than {config.n}; choose another folder")
    missing = []
    for name, images in config.shards().items():
        if (out / name).exists():
            _read_shard(out / name, settings, config, images)
        else:
            missing.append(name)
    if missing or not manifest:
        _write_manifest(out, settings, config.n, not missing, facts)
    return missing


def _write_manifest(
    out: Path, settings: dict[str, Any], n: int, complete: bool, facts: dict[str, Any] | None = None
) -> dict[str, Any]:
    with locked(out / MANIFEST):
        before = _read_manifest(out)
        if before:  # another run may have begun since this one looked
            check_settings(out / MANIFEST, before["settings"], settings)
            if before["n"] > n:  # and have gone further
                n, complete = before["n"], before["complete"]
        starts = before.get("provenance", []) + ([facts] if facts else [])
        manifest = {"settings": settings, "n": n, "complete": complete, "provenance": starts}
        write_json(out / MANIFEST, manifest)
    return manifest
