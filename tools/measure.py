"""Tables that chapters read: what solvers draw, and which codes can be edited.

python tools/measure.py solvers | edits     (minutes to an hour on a CPU; each row is written when it is done)
"""

import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ddimlib import (
    LabelledDenoiser,
    SeededNoise,
    accelerate,
    bundled_sample,
    ddim,
    ddim_ab2,
    ddim_step,
    last,
    load_pretrained,
    timesteps,
)
from ddimlib.denoisers import predict_noise
from ddimlib.evaluation import RESULTS, add_row, evaluation_labels, missing_rows, open_table
from ddimlib.metrics import Judge
from ddimlib.provenance import provenance, weights_digest


def dpm_solver_2m(model, schedule, x_T, steps) -> Iterator[Tensor]:
    """DPM-Solver++ (2M): x̂_0 extrapolated in λ = -log s; the last step, to s = 0, is DDIM's (Lu et al. 2022)."""
    s = ((1 - schedule.alpha_bar) / schedule.alpha_bar).sqrt()
    x, before, x0_before = x_T, None, None
    for t, prev in pairwise([*steps, 0]):
        x0 = ahead = schedule.predict_x0(x, t, predict_noise(model, x, t))
        if before and prev:
            ahead = x0 + 0.5 * float((s[t] / s[prev]).log() / (s[before] / s[t]).log()) * (x0 - x0_before)
        x = ddim_step(schedule, x, schedule.predict_eps(x, t, ahead), t, prev)
        before, x0_before = t, x0
        yield x


def heun(model, schedule, x_T, steps) -> Iterator[Tensor]:
    """Heun's method in (x̄, s) as in EDM (Karras et al. 2022): two evaluations a step, one in the last."""
    x = x_T
    for t, prev in pairwise([*steps, 0]):
        eps = predict_noise(model, x, t)
        if prev:
            eps = (eps + predict_noise(model, ddim_step(schedule, x, eps, t, prev), prev)) / 2
        x = ddim_step(schedule, x, eps, t, prev)
        yield x


def equal_s_root(schedule, S: int) -> list[int]:
    """S timesteps at about equal distances in s^(1/7), from T down to 1 (Karras et al. 2022, equation 5)."""
    v = ((1 - schedule.alpha_bar) / schedule.alpha_bar)[1:] ** (1 / 14)
    wanted = torch.linspace(float(v[-1]), float(v[0]), S, dtype=v.dtype)
    return [1 + int((v - each).abs().argmin()) for each in wanted]


def solvers(n: int = 5000) -> None:
    """Accuracy and Fréchet distance of four solvers on two grids, with about as many evaluations, from the same x_T."""
    network, schedule = load_pretrained("mnist")
    fast, batch = accelerate(network, bf16=True, compile=True), 250
    judge, labels = Judge.load("mnist"), evaluation_labels(n, 10)
    methods: dict[str, Callable[..., Iterator[Tensor]]] = {
        "DDIM": ddim,
        "AB2": ddim_ab2,
        "2M": dpm_solver_2m,
        "Heun": heun,
    }
    settings = {"weights": weights_digest(network), "samples": n, "bf16": True}
    path = RESULTS / "mnist-solvers.json"
    table = open_table(path, settings, facts("solvers"), judge=judge.facts)
    grids = {"linspace": timesteps, "s^(1/7)": lambda T, S: equal_s_root(schedule, S)}
    wanted = missing_rows(table, spacing=tuple(grids), seed=(0, 1), evaluations=(5, 10, 20), method=tuple(methods))
    for spacing, seed, evaluations, name in wanted:
        # Heun asks twice in each step but the last: 5, 9 and 19 evaluations
        steps = grids[spacing](schedule.T, (evaluations + 1) // 2 if name == "Heun" else evaluations)
        images = []
        for first in range(0, n, batch):
            model = LabelledDenoiser(fast, labels[first : first + batch])
            x_T = SeededNoise.from_seed(seed, batch, first).initial(network.image_shape)
            images.append(last(methods[name](model, schedule, x_T, steps)))
        drawn = torch.cat(images).clamp(-1, 1)
        row = {"method": name, "spacing": spacing, "evaluations": evaluations, "seed": seed,
               "accuracy": round(judge.accuracy(drawn, labels), 4),
               "frechet": round(judge.frechet_distance(drawn), 4)}  # fmt: skip
        add_row(path, table, row, ("spacing", "seed", "evaluations", "method"))
        print(row, flush=True)


def climb(model, schedule, x, times, ask="target", iterations=0) -> Tensor:
    """DDIM upwards from times[0] to times[-1]; asked at the source or at the target, or solved by iteration (chapter 9)."""
    for s, t in pairwise(times):
        x_t = ddim_step(schedule, x, predict_noise(model, x, max(s, 1) if ask == "source" else t), s, t)
        for _ in range(iterations):
            x_t = ddim_step(schedule, x, predict_noise(model, x_t, t), s, t)
        x = x_t
    return x


def style(x: Tensor) -> Tensor:
    """Ink (mean brightness) and slant of each image: [2, N]."""
    w = (x[:, 0].clamp(-1, 1) + 1) / 2
    ink = w.mean((1, 2))
    w, place = w / w.sum((1, 2), keepdim=True), torch.arange(28.0)
    right = place - (w.sum(1) * place).sum(1, keepdim=True)
    higher = (w.sum(2) * place).sum(1, keepdim=True) - place
    slant = torch.einsum("nij,ni,nj->n", w, higher, right) / (w.sum(2) * higher**2).sum(1)
    return torch.stack([ink, slant])


def edits(n: int = 40) -> None:
    """Real digits that are no 3 and no 8, encoded in four ways and decoded as a 3 and as an 8."""
    network, schedule = load_pretrained("mnist")
    judge = Judge.load("mnist")
    images, labels = bundled_sample("mnist")
    chosen = ((labels != 3) & (labels != 8)).nonzero().flatten()[:n]
    x_0, old = images[chosen], labels[chosen]
    asked = LabelledDenoiser(network, old)
    settings = {"weights": weights_digest(network), "samples": n, "targets": [3, 8], "iterations": 3}
    path = RESULTS / "mnist-edits.json"
    table = open_table(path, settings, facts("edits"), judge=judge.facts)
    done = {(row["spacing"], row["steps"], row["code"]) for row in table["rows"]}
    for S, spacing in [(16, "quadratic"), (50, "quadratic"), (50, "linspace")]:
        steps = timesteps(schedule.T, S, spacing)
        up = [0, *reversed(steps)]
        noisy = schedule.add_noise(x_0, up[1], SeededNoise.from_seed(6, n)(x_0))
        ways = {
            "source": lambda up=up: climb(asked, schedule, x_0, up, "source"),
            "target": lambda up=up: climb(asked, schedule, x_0, up),
            "implicit": lambda up=up: climb(asked, schedule, x_0, up, iterations=3),
            "noise first": lambda up=up, noisy=noisy: climb(asked, schedule, noisy, up[1:], iterations=3),
        }
        for name, encode in ways.items():
            if (spacing, S, name) in done:
                continue
            code = encode()
            again = last(ddim(asked, schedule, code, steps))
            edited = [last(ddim(LabelledDenoiser(network, [new] * n), schedule, code, steps)) for new in (3, 8)]
            seen = judge.predict(torch.cat(edited))
            kept = [
                torch.corrcoef(torch.stack([a, b]))[0, 1]
                for x in edited
                for a, b in zip(style(x_0), style(x), strict=True)
            ]
            row = {"spacing": spacing, "steps": S, "code": name,
                   "new": round(float((seen == torch.tensor([3] * n + [8] * n)).double().mean()), 4),
                   "old": round(float((seen == old.repeat(2)).double().mean()), 4),
                   "ink": round(float(kept[0] + kept[2]) / 2, 3), "slant": round(float(kept[1] + kept[3]) / 2, 3),
                   "norm": round(float(code.flatten(1).norm(dim=1).mean()), 2),
                   "round_trip": float(f"{(again - x_0).square().mean().sqrt():.3g}")}  # fmt: skip
            add_row(path, table, row, ("spacing", "steps", "code"))
            print(row, flush=True)


def facts(name: str) -> dict[str, Any]:
    return provenance() | {"command": f"python tools/measure.py {name}"}


if __name__ == "__main__":
    {"solvers": solvers, "edits": edits}[sys.argv[1]]()
