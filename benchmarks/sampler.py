"""How fast is sampling? Ours and other samplers, on one network from one x_T, against the network's bare forward passes.

python benchmarks/sampler.py --device cuda --out ddimlib/results/benchmark-cuda.json
"""

import ctypes
import gc
import importlib.metadata
import importlib.util
import math
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
import tyro
from torch import Tensor, nn
from tqdm import tqdm

from ddimlib.__main__ import Command, execute, load
from ddimlib.acceleration import AcceleratedDenoiser, accelerate
from ddimlib.evaluation import add_row, missing_rows, open_table
from ddimlib.latents import SeededNoise, sample_seeds
from ddimlib.plotting import plot_benchmark, use_book_style
from ddimlib.provenance import provenance, weights_digest
from ddimlib.samplers import Denoiser, ddim
from ddimlib.schedule import NoiseSchedule
from ddimlib.storage import check_output
from ddimlib.timesteps import timesteps

Loop = Callable[[Tensor], Tensor]
"""A sampler with everything fixed but its starting noise: x_0 = loop(x_T)."""

OURS = "ddimlib"
ACCELERATED = "ddimlib, accelerated"
GRAPH = "ddimlib, float32 graph"
FORWARD = "forward passes"
ACCELERATED_FORWARD = "forward passes, accelerated"
GRAPH_FORWARD = "forward passes, float32 graph"
FLOORS = {OURS: FORWARD, ACCELERATED: ACCELERATED_FORWARD, GRAPH: GRAPH_FORWARD}
"""For each of our samplers, what it cannot be faster than: S evaluations of its network and nothing else."""

TOLERANCE = {OURS: 0.0, GRAPH: 1e-5}
"""How far a pixel may be from that of the plain float32 sampler; see :data:`ROUNDING` for all others."""

ROUNDING = 1e-3
"""The same for samplers that compute their coefficients in float32."""

TF32_ROUNDING = 1e-2
"""The root of the mean square difference that is allowed where convolutions keep ten bits of a number (TF32, on by default
on a CUDA GPU): each way to compute them rounds differently, and pixels at the edges of strokes then differ by more."""


def uses_tf32(device: torch.device) -> bool:
    """Whether convolutions on this device may round to ten bits."""
    return device.type == "cuda" and torch.backends.cudnn.allow_tf32


# --- the samplers ----------------------------------------------------------------------------------------------------


def our_loop(model: Denoiser, schedule: NoiseSchedule, steps: Sequence[int]) -> Loop:
    """:func:`ddimlib.ddim`, keeping the last state alone."""

    def loop(x_T: Tensor) -> Tensor:
        x = x_T
        for x in ddim(model, schedule, x_T, steps):  # noqa: B007, the last one is kept
            pass
        return x

    return loop


def forward_passes(model: Denoiser, steps: Sequence[int]) -> Loop:
    """The floor: S evaluations at one x_T with times that are at hand already; what they say is thrown away.

    Of a graph, it is the replays alone, with no copy in or out.
    """

    def loop(x: Tensor) -> Tensor:
        times = [torch.full((len(x),), t, device=x.device) for t in steps]
        if isinstance(model, AcceleratedDenoiser) and model.uses_graph:
            call = model.captured(x, times[0])
            for _ in times:
                call.graph.replay()
            return call.output
        with torch.no_grad():
            for t in times:
                eps = model(x, t)
        return eps

    return loop


def tutorial_loop(model: Denoiser, schedule: NoiseSchedule, steps: Sequence[int]) -> Loop:
    """DDIM as tutorials write it: the update term by term, with the coefficients as tensors on the device.

    The form is that of the paper's own code, github.com/ermongroup/ddim, functions/denoising.py, at η = 0.
    """
    pairs = list(zip(steps, [*steps[1:], 0], strict=True))

    def loop(x_T: Tensor) -> Tensor:
        alpha_bar = schedule.alpha_bar.float().to(x_T.device)
        x, eta = x_T, 0.0
        with torch.no_grad():
            for t, prev in pairs:
                time_now = torch.full((len(x),), t, device=x.device)
                time_next = torch.full((len(x),), prev, device=x.device)
                at = alpha_bar.index_select(0, time_now).view(-1, 1, 1, 1)
                at_next = alpha_bar.index_select(0, time_next).view(-1, 1, 1, 1)
                et = model(x, time_now)
                x0_t = (x - et * (1 - at).sqrt()) / at.sqrt()
                c1 = eta * ((1 - at / at_next) * (1 - at_next) / (1 - at)).sqrt()
                c2 = ((1 - at_next) - c1**2).sqrt()
                x = at_next.sqrt() * x0_t + c1 * torch.randn_like(x) + c2 * et
        return x

    return loop


def diffusers_loop(model: Denoiser, schedule: NoiseSchedule, steps: Sequence[int]) -> Loop:
    """The loop of diffusers' DDIMPipeline: its scheduler, with its timesteps on the device, and our network."""
    from diffusers import DDIMScheduler

    scheduler: Any = DDIMScheduler(
        num_train_timesteps=schedule.T, trained_betas=schedule.beta[1:].numpy(), clip_sample=False,
        set_alpha_to_one=True, steps_offset=0, timestep_spacing="trailing",
    )  # fmt: skip

    def loop(x_T: Tensor) -> Tensor:
        scheduler.set_timesteps(len(steps), device=x_T.device)
        x = x_T
        with torch.no_grad():
            for t in scheduler.timesteps:
                eps = model(x, (t + 1).expand(len(x)))  # it counts 0..T-1
                x = scheduler.step(eps, t, x, eta=0.0).prev_sample
        return x

    return loop


def denoising_diffusion_pytorch_loop(model: Denoiser, schedule: NoiseSchedule, steps: Sequence[int]) -> Loop:
    """`GaussianDiffusion.ddim_sample` of denoising-diffusion-pytorch, as it is, on our network.

    It always clips x̂_0; this is turned off, so that it draws the images that the others draw, and so is its progress bar. Both
    spare it time.
    """
    import denoising_diffusion_pytorch.denoising_diffusion_pytorch as module

    class Network(nn.Module):
        channels = out_dim = 1  # asked for, and not used in sampling
        self_condition = False

        def forward(self, x: Tensor, t: Tensor, x_self_cond: Tensor | None = None) -> Tensor:
            return model(x, t + 1)  # it counts 0..T-1

    class Unclipped(module.GaussianDiffusion):
        def model_predictions(self, x: Tensor, t: Tensor, x_self_cond: Any = None, **clipping: bool) -> Any:
            return super().model_predictions(x, t, x_self_cond)

    def betas(timesteps: int) -> Tensor:
        return schedule.beta[1:]

    with mock.patch.object(module, "linear_beta_schedule", betas):
        diffusion = Unclipped(
            Network(), image_size=1, timesteps=schedule.T, sampling_timesteps=len(steps), objective="pred_noise",
            beta_schedule="linear", auto_normalize=False,
        )  # fmt: skip

    def loop(x_T: Tensor) -> Tensor:
        diffusion.to(x_T.device)
        # it draws its own starting noise, and nothing else by this function
        with (
            mock.patch.object(torch, "randn", return_value=x_T),
            mock.patch.object(module, "tqdm", lambda pairs, **_: pairs),
        ):
            return diffusion.ddim_sample(x_T.shape)

    return loop


PEERS: dict[str, Callable[[Denoiser, NoiseSchedule, Sequence[int]], Loop]] = {
    "tutorial": tutorial_loop,
    "diffusers": diffusers_loop,
    "denoising-diffusion-pytorch": denoising_diffusion_pytorch_loop,
}
"""Other samplers, by the names that options and tables use."""


def loops(
    model: nn.Module, fast: Mapping[str, AcceleratedDenoiser], schedule: NoiseSchedule, S: int, peers: Sequence[str]
) -> dict[str, Loop]:
    """Every sampler and every floor, by name. All visit the same timesteps.

    Raises:
        ValueError: when S does not divide T, so that the peers would visit other timesteps than we do.
        ModuleNotFoundError: when a peer is not installed; it says which extra brings it.
    """
    if schedule.T % S:
        raise ValueError(f"the peers visit our timesteps only where S divides T = {schedule.T}; {S} does not")
    steps = timesteps(schedule.T, S, "trailing")
    found = {OURS: our_loop(model, schedule, steps)}
    found |= {name: our_loop(network, schedule, steps) for name, network in fast.items()}
    for name in peers:
        try:
            found[name] = PEERS[name](model, schedule, steps)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{name} is not installed ({error}); it comes with the extra: pip install -e '.[bench]' -c constraints.txt. "
                "Or leave it out, as in --peers tutorial"
            ) from error
    found[FORWARD] = forward_passes(model, steps)
    found |= {FLOORS[name]: forward_passes(network, steps) for name, network in fast.items()}
    return found


# --- measuring -------------------------------------------------------------------------------------------------------


def benchmark(
    model: nn.Module,
    schedule: NoiseSchedule,
    batches: Sequence[int],
    steps: Sequence[int],
    out: Path,
    facts: dict[str, Any],
    peers: Sequence[str] = tuple(PEERS),
    compile: bool = True,
    repeats: int = 7,
    seconds: float = 20.0,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Time every sampler for every pair (batch, S), taking turns, from the same starting noise.

    Before it is timed, each sampler draws the images once, and they are compared with those of the plain one. The table is
    written after every row. A table that is already at `out` is continued when it was made on the same machine, network and
    settings, so an interrupted run loses one row at most.

    Args:
        model: called as model(x, t); it has an `image_shape`.
        schedule: its schedule.
        batches, steps: the rows are their product; each S divides T.
        out: the JSON file.
        facts: provenance; "device" must be the same when a table is continued.
        peers: which other samplers, of :data:`PEERS`.
        compile: let torch.compile work on the accelerated network.
        repeats: how often, at least, each sampler is timed in a row; they take turns, in an order that is drawn anew each time.
        seconds: go on with a row for at least so long.
        seed: of the starting noise.
        progress: show a progress bar.

    Returns:
        The table: "settings", "provenance", and "rows" of batch, steps, repeats, "largest_difference" and "rms_difference" (of
        a pixel, on a scale of 2, by sampler), "own_cost" (see :func:`own_cost`), and "samplers": by sampler or floor, "seconds"
        (median of a run), "quartiles" (of seconds), "ratio" (median over the rounds of its time by the time of "ddimlib" in
        the same round), "ratio_quartiles", "peak_mb" (memory that a run takes above what is held before; null where it cannot
        be told), and for our samplers "overhead" (how much longer than their floor they take, as a share of it: 0.01 is one
        per cent; a median over the rounds) and "overhead_quartiles".

    Raises:
        ValueError: when a number is out of range, or the file at `out` belongs to other settings.
        ModuleNotFoundError: see :func:`loops`.
        ArithmeticError: when a sampler draws other images.
    """
    if min(*batches, *steps, repeats) < 1 or unknown_peers(peers):
        raise ValueError(
            f"batches, steps and repeats must be at least 1 and peers among {', '.join(PEERS)}; "
            f"got {list(batches)}, {list(steps)}, {repeats} and {list(peers)}"
        )
    device = next(model.parameters()).device
    fast = {ACCELERATED: accelerate(model, compile=compile)}
    if device.type == "cuda":
        fast[GRAPH] = accelerate(model, bf16=False)
    for S in steps:
        loops(model, fast, schedule, S, peers)  # what is missing or does not fit is said before minutes are spent
    settings = {
        "weights": weights_digest(model), "parameters": sum(p.numel() for p in model.parameters()),
        "device": facts["device"], "torch": facts["torch"],
        "accelerated": {name: getattr(fast[ACCELERATED], name) for name in ("bf16", "compiled", "uses_graph")},
        "peers": {name: _version(name) for name in peers}, "seed": seed,
        "tf32": uses_tf32(device),
    }  # fmt: skip
    table = open_table(out, settings, facts)
    todo = missing_rows(table, batch=batches, steps=steps)
    with tqdm(total=len(todo), disable=not progress, unit="row") as bar:
        for B, S in todo:
            bar.set_description(f"batch {B}, S = {S}")
            x_T = SeededNoise(sample_seeds(seed, B)).draw(model.image_shape).to(device)  # type: ignore[arg-type]
            candidates = loops(model, fast, schedule, S, peers)
            row = {"batch": B, "steps": S} | compare(candidates, x_T) | measure(candidates, x_T, repeats, seconds)
            forward = row["samplers"][FORWARD]["seconds"]
            row |= {"own_cost": own_cost(model, schedule, S, peers, x_T, forward)}
            add_row(out, table, row, ("batch", "steps"))
            bar.update()
    return table


def installed_peers() -> list[str]:
    """Those of :data:`PEERS` that can be imported here."""
    return [name for name in PEERS if name == "tutorial" or importlib.util.find_spec(name.replace("-", "_"))]


def unknown_peers(peers: Sequence[str]) -> list[str]:
    """Those that are not in :data:`PEERS`."""
    return [name for name in peers if name not in PEERS]


def compare(candidates: Mapping[str, Loop], x_T: Tensor) -> dict[str, dict[str, float]]:
    """How far each sampler's images are from those of the plain one; floors draw nothing and only warm up.

    Returns:
        "largest_difference" of a pixel and "rms_difference", by sampler.

    Raises:
        ArithmeticError: when it is more than rounding explains. In bfloat16 nothing is refused, for there the network decides.
    """
    tf32 = uses_tf32(x_T.device)
    expected = candidates[OURS](x_T)
    found: dict[str, dict[str, float]] = {"largest_difference": {}, "rms_difference": {}}
    for name, loop in candidates.items():
        if name in FLOORS.values():
            loop(x_T)
            continue
        difference = loop(x_T) - expected
        largest, rms = float(difference.abs().max()), float(difference.square().mean().sqrt())
        found["largest_difference"][name], found["rms_difference"][name] = float(f"{largest:.2g}"), float(f"{rms:.2g}")
        distance, allowed = (rms, TF32_ROUNDING) if tf32 else (largest, TOLERANCE.get(name, ROUNDING))
        if name != ACCELERATED and not distance <= allowed:
            raise ArithmeticError(
                f"{name} draws other images: a pixel differs by {distance:.2g}, where rounding explains "
                f"{allowed:.0e}; its times would not be those of the same task"
            )
    return found


def measure(candidates: Mapping[str, Loop], x_T: Tensor, repeats: int, seconds: float) -> dict[str, Any]:
    """Times and memory of each candidate, see :func:`benchmark`. Each must have run before."""
    peaks = {name: peak_bytes(loop, x_T) for name, loop in candidates.items()}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    order, names, begin, rounds = random.Random(0), list(candidates), time.perf_counter(), 0
    gc.collect()
    while rounds < repeats or time.perf_counter() - begin < seconds:
        order.shuffle(names)  # so that none always comes after the same other
        for name in names:
            times[name].append(_seconds(candidates[name], x_T))
        rounds += 1
    return {"repeats": rounds, "samplers": {name: _summary(name, times, peaks[name]) for name in candidates}}


def own_cost(
    model: nn.Module, schedule: NoiseSchedule, S: int, peers: Sequence[str], x_T: Tensor, forward: float
) -> dict[str, float]:
    """What each sampler does besides evaluating the network, as a share of S forward passes, which take `forward` seconds.

    It is timed with a network that costs nothing, so it can be told apart from noise where the difference of two runs cannot.
    On a GPU, this is what it costs when it has nothing to hide behind; in a run, launches overlap with the network's kernels.
    """
    candidates = {name: loop for name, loop in loops(_Free(model), {}, schedule, S, peers).items() if name != FORWARD}
    for loop in candidates.values():
        loop(x_T)
    times = {name: [_seconds(loop, x_T) for _ in range(15)] for name, loop in candidates.items()}
    return {name: _short(statistics.median(measured) / forward) for name, measured in times.items()}


class _Free(nn.Module):
    """A network that costs nothing, but has the modules of one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x


def _summary(name: str, times: Mapping[str, Sequence[float]], peak: int | None) -> dict[str, Any]:
    """A candidate's entry in a row."""
    measured = times[name]
    ratios = [a / b for a, b in zip(measured, times[OURS], strict=True)]
    entry = {
        "seconds": _short(statistics.median(measured)),
        "quartiles": _quartiles(measured),
        "ratio": _short(statistics.median(ratios)),
        "ratio_quartiles": _quartiles(ratios),
        "peak_mb": None if peak is None else round(peak / 1e6, 2),
    }
    if name in FLOORS:
        floor = times[FLOORS[name]]
        overheads = [a / b - 1 for a, b in zip(measured, floor, strict=True)]
        entry |= {
            "overhead": _short(statistics.median(overheads)),
            "overhead_quartiles": _quartiles(overheads),
        }
    return entry


def peak_bytes(loop: Loop, x_T: Tensor) -> int | None:
    """The memory that a run takes at most, beyond what is held before it; None where the system does not tell.

    On a GPU it is torch's own count. On Linux it is the process's resident memory, whose highest value can be set back.
    """
    if x_T.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loop(x_T)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(
            0
        )  # give back what is free, or a run would find it there and take nothing new
        Path("/proc/self/clear_refs").write_text("5")  # highest value := present value
        before = _resident("VmRSS")
        loop(x_T)
        return max(0, _resident("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", status, flags=re.MULTILINE)
    if not found:
        raise OSError(f"no {field} in /proc/self/status")
    return 1024 * int(found[1])


def _seconds(loop: Loop, x_T: Tensor) -> float:
    """What one run takes, to the end of the last kernel."""
    if x_T.device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    loop(x_T)
    if x_T.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _quartiles(values: Sequence[float]) -> list[float]:
    if len(values) == 1:
        return [_short(values[0])] * 2
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [_short(low), _short(high)]


def _version(peer: str) -> str:
    return "as in this file" if peer == "tutorial" else importlib.metadata.version(peer)


# --- showing ---------------------------------------------------------------------------------------------------------


def format_table(table: Mapping[str, Any]) -> str:
    """The table as text: one line for each row and sampler."""
    lines = [
        f"{'batch':>5} {'S':>4}  {'':<30} {'images/s':>9} {'time':>7} {'quartiles':>13} {'peak MB':>8} {'largest Δ':>9}"
    ]
    for row in table["rows"]:
        for name, entry in row["samplers"].items():
            low, high = entry["ratio_quartiles"]
            memory = "" if entry["peak_mb"] is None else f"{entry['peak_mb']:.1f}"
            difference = row["largest_difference"].get(name, math.nan)
            lines.append(
                f"{row['batch']:>5} {row['steps']:>4}  {name:<30} {row['batch'] / entry['seconds']:>9.1f} "
                f"{entry['ratio']:>6.3f}× {low:>6.3f}–{high:.3f} {memory:>8} "
                f"{'' if math.isnan(difference) else f'{difference:.1e}':>9}"
            )
    return "\n".join(lines)


# --- the command -----------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Benchmark(Command):
    """Time our sampler, plain and accelerated, against others on the same network.

    Checks first that all draw the same images. Writes a JSON table after every row; the same command again continues it.
    Let nothing else run meanwhile. The peers come with the extra: pip install -e '.[bench]' -c constraints.txt

    Attributes:
        model: mnist, fashion, a .safetensors file, or the folder of a run
        batch: one or more batch sizes
        steps: one or more numbers of steps; each divides 1000
        peers: none or more other samplers (default: those that are installed)
        compile: let torch.compile work on the accelerated network
        repeats: how often at least each sampler is timed in a row
        seconds: go on with a row for at least so long
        seed: of the starting noise
        out: the table (default: benchmark-cpu.json or benchmark-cuda.json)
        figure: draw the table, too: a .png or .svg (default: no)
    """

    model: str = "mnist"
    batch: tuple[int, ...] = (1, 16, 64, 256, 1024)
    steps: tuple[int, ...] = (10, 50, 250)
    peers: tuple[Literal["tutorial", "diffusers", "denoising-diffusion-pytorch"], ...] | None = None
    compile: bool = True
    repeats: int = 7
    seconds: float = 20.0
    seed: int = 0
    out: str | None = None
    figure: str | None = None

    def is_resumable(self) -> bool:
        return True

    def run(self) -> None:
        out = check_output(self.out or f"benchmark-{torch.device(self.device).type}.json")
        if self.figure is not None and check_output(self.figure).suffix not in (".png", ".svg"):
            raise ValueError(f"--figure must end in .png or .svg, got {self.figure}")
        model, schedule = load(self.model, self.device)
        peers = installed_peers() if self.peers is None else self.peers
        table = benchmark(
            model, schedule, self.batch, self.steps, out, provenance(self.device), peers, self.compile, self.repeats,
            self.seconds, self.seed, progress=not self.quiet,
        )  # fmt: skip
        print(format_table(table))
        print(f"wrote {out}")
        if self.figure is not None:
            use_book_style()
            plot_benchmark(table).savefig(self.figure)
            print(f"wrote {self.figure}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    return execute(lambda: tyro.cli(Benchmark, args=words, prog="python benchmarks/sampler.py"))


if __name__ == "__main__":
    sys.exit(main())
