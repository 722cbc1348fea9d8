"""Where the time of a DDIM step goes on a GPU: what the host and the device do, microsecond by microsecond.

    python benchmarks/trace.py --device cuda --out ddimlib/results/trace-cuda.json

Records a few steps of the plain sampler and of the accelerated one with torch's profiler: when each kernel ran on the device,
and when the host launched it or waited. Beside them it times one evaluation of the network in four ways: as it is, by our
CUDA graph, by torch.compile's own graphs (mode "reduce-overhead"), and by `torch.cuda.make_graphed_callables`. Chapter 10
draws the file.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sampler import uses_tf32
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ddimlib import SeededNoise, accelerate, ddim, load_pretrained, sample_seeds, timesteps
from ddimlib.provenance import provenance

STEPS = 5


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def recorded(draw: Callable[[], Tensor], device: torch.device) -> dict[str, Any]:
    """Device kernels and host calls of one run of `draw`, as :func:`columns`, in microseconds from the first."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    for _ in range(3):
        draw()
    synchronize(device)
    with profile(activities=activities) as profiler:
        draw()
        synchronize(device)
    events = list(profiler.events())
    begin = min(event.time_range.start for event in events)

    kernels = [e for e in events if e.device_type == DeviceType.CUDA]
    host = [e for e in events if e.device_type == DeviceType.CPU and (e.name.startswith("cu") or e.cpu_parent is None)]
    found = {"kernels": columns(kernels, begin), "host": columns(host, begin)}
    return found | {"count": {"kernels": len(kernels), "operators": sum(e.name.startswith("aten::") for e in events)}}


def columns(events: list[Any], begin: float) -> dict[str, list[Any]]:
    """Start, duration and name of each event, in order; "name" holds indices into "names", which saves most of the space."""
    ordered = sorted(events, key=lambda e: e.time_range.start)
    names = sorted({e.name[:60] for e in ordered})
    return {
        "start": [round(e.time_range.start - begin, 1) for e in ordered],
        "duration": [round(e.time_range.elapsed_us(), 1) for e in ordered],
        "name": [names.index(e.name[:60]) for e in ordered],
        "names": names,
    }


def evaluation_times(
    model: nn.Module, batches: list[int], device: torch.device, seconds: float
) -> list[dict[str, Any]]:
    """Median seconds of one evaluation by each way to run the network, in turns; null where a way fails."""
    found = []
    for B in batches:
        x = SeededNoise(sample_seeds(0, B)).draw(model.image_shape).to(device)  # type: ignore[arg-type]
        t = torch.full((B,), 500, device=device)
        ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"plain": model, "accelerated": accelerate(model)}
        if device.type == "cuda":
            ways["float32 graph"] = accelerate(model, bf16=False)
            ways["torch.compile, reduce-overhead"] = torch.compile(model, mode="reduce-overhead")
            # a copy: the graphs take the place of its forward pass
            ways["make_graphed_callables"] = torch.cuda.make_graphed_callables(copy.deepcopy(model), (x, t))
        times: dict[str, list[float]] = {}
        failed: dict[str, str] = {}
        with torch.no_grad():
            for name, way in ways.items():
                try:
                    for _ in range(4):
                        way(x, t)
                    times[name] = []
                except Exception as error:  # a way that a version of torch cannot go is a result, too
                    failed[name] = str(error).splitlines()[0][:200]
            begin = time.perf_counter()
            while time.perf_counter() - begin < seconds:
                for name in times:
                    synchronize(device)
                    start = time.perf_counter()
                    for _ in range(10):
                        ways[name](x, t)
                    synchronize(device)
                    times[name].append((time.perf_counter() - start) / 10)
        medians = {name: float(f"{statistics.median(values):.3g}") for name, values in times.items()}
        found.append({"batch": B, "seconds": medians, "failed": failed})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--seconds", type=float, default=1.5, help="of timing, for each batch size")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    device = torch.device(args.device)
    model, schedule = load_pretrained("mnist", device)
    steps = timesteps(schedule.T, STEPS)
    table: dict[str, Any] = {"steps": STEPS, "tf32": uses_tf32(device), "traces": {}, "provenance": provenance(device)}
    table["provenance"]["command"] = f"python benchmarks/trace.py --device {device} --out {args.out.name}"
    for B in args.batch[1:2] + args.batch[-1:]:
        x_T = SeededNoise(sample_seeds(0, B)).draw(model.image_shape).to(device)
        for name, network in {"plain": model, "accelerated": accelerate(model)}.items():

            def draw(network: nn.Module = network, x_T: Tensor = x_T) -> Tensor:
                *_, x_0 = ddim(network, schedule, x_T, steps)
                return x_0

            table["traces"][f"{name}, batch {B}"] = recorded(draw, device)
    args.out.write_text(json.dumps(table, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    table["evaluation"] = evaluation_times(model, args.batch, device, args.seconds)
    args.out.write_text(json.dumps(table, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    for row in table["evaluation"]:
        print(row)


if __name__ == "__main__":
    main()
