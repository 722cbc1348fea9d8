"""Bad inputs × public functions: each refused before any work, by name, in our words and not in torch's.

A function has one good call; a row changes one argument of it. What is wrong with a steps, a time, a tensor or a number is
the same everywhere, so each kind of argument has one list of bad values, and every function that takes it is shown them all.
"""

import math
import re
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Spy, randn, short_schedule
from torch import nn

import ddimlib
from ddimlib import (
    DiffusersDenoiser,
    GaussianMixture,
    GuidedDenoiser,
    LabelledDenoiser,
    NoiseSchedule,
    PredictionDenoiser,
    SeededNoise,
    UNet,
    accelerate,
    ddim,
    ddim_ab2,
    ddim_sigma,
    ddim_step,
    ddpm,
    ddpm_step,
    gaussian,
    invert,
    last,
    lerp,
    sample,
    sample_seeds,
    slerp,
    timesteps,
)
from ddimlib.arguments import KindError, check_bytes, check_images, check_labels
from ddimlib.data import to_bytes, to_model_range, with_channels
from ddimlib.plotting import check_picture, image_grid, show_rows
from ddimlib.training import noise_loss

SCHEDULE = short_schedule()
X, Y = randn(2, 1, 2, 2), randn(2, 1, 2, 2, seed=1)
IMAGE = X.tanh()


class Conditional(nn.Module):
    """Three classes, and nothing to compute."""

    num_classes = 3
    calls = 0

    def forward(self, x, t, labels=None):
        Conditional.calls += 1
        return 0.1 * x


class Rows(nn.Module):
    """What DiffusersDenoiser asks of a network of diffusers: here, one with three rows of labels."""

    config = type("Config", (), {"num_class_embeds": 3})


SPY = Spy()
NETWORK = Conditional()
UNET = UNet(1, (8,), (1,), (False,), 2, num_classes=3)
BYTES = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
MIXTURE = GaussianMixture(torch.zeros(2, 1, 1, 1), [1.0, 0.5])

# --- the kinds of argument, and what is wrong with their values ------------------------------------------------------

NO_TENSOR = [None, [1.0, 2.0], np.zeros((2, 1, 2, 2)), "x", 3.0]
NO_FLOATS = [torch.zeros(2, 1, 2, 2, dtype=d) for d in (torch.uint8, torch.int64, torch.bool, torch.complex64)]
OTHER_SHAPES = [X[0], X[:1], torch.zeros(2, 1, 2), torch.zeros(2, 2, 2, 2), torch.zeros(0, 1, 2, 2)]
NOT_FINITE = [torch.full_like(X, v) for v in (math.nan, math.inf, -math.inf)]
STATES = [*NO_TENSOR, *NO_FLOATS, *NOT_FINITE, X[0], torch.zeros(0, 1, 2, 2), X.to(torch.complex128)]
PARTNERS = [*NO_TENSOR, *NO_FLOATS, *OTHER_SHAPES]
NO_INTEGERS = [2.0, "3", True, [3], math.nan, torch.tensor(2.5)]
NO_NUMBERS = ["1", True, None, [1.0], math.nan, math.inf, -math.inf, -(10**400)]
STEPS = [
    [],
    [0],
    [41, 5],
    [5, 9],
    [5, 5],
    [5, -1],
    [5, True],
    [9.0, 5.0],
    torch.tensor([9.0, 5.0]),
    "ab",
    0,
    41,
    -3,
    4.0,
    True,
    SCHEDULE,
]
TIMES = [-1, 41, 2.5, "3", True, None, torch.tensor([[3], [4]]), torch.tensor([3.0, 4.0]), torch.tensor([True, False]),
         torch.tensor([3, 41]), torch.tensor([-1, 3]), torch.tensor(2.5), np.array([1.5, 2.0]), [3, True], ["a", "b"],
         [None, 3], [[3], [4, 5]]]  # fmt: skip
LENGTHS = [torch.tensor([3]), torch.tensor([3, 4, 5]), [3, 4, 5]]
ETAS = [-0.1, 1.1, math.nan, math.inf, "tilde", None, True, [0.5], torch.tensor([0.1, 0.2])]
CLIPS = [0, 1e300, 10**400, -1.0, math.nan, math.inf, "static", True, [1.0]]
NOISES = [5.0, True, "seed", -1, 2**32, X, randn(3, 2, 1, 2, 2), torch.full((4, 2, 1, 2, 2), math.nan),
          torch.zeros(4, 2, 1, 2, 2, dtype=torch.int64), SeededNoise([1, 2, 3]), [1, 2]]  # fmt: skip
MODELS = [None, "mnist", 3, (NETWORK, SCHEDULE), X]
SCHEDULES = [None, 40, "linear", [0.1, 0.2], NoiseSchedule, SCHEDULE.beta]
LABELS = [
    [0, 3],
    [-1, 0],
    [0.0, 1.0],
    "ab",
    None,
    torch.tensor([[0, 1]]),
    torch.tensor([0.5, 1]),
    [True, False],
    [0, True],
    [0, 10**30],
    3,
    -1,
    [None],
]
SEEDS = [-1, 2**32, *NO_INTEGERS]

DDIM = {"model": SPY, "schedule": SCHEDULE, "x_T": X, "steps": [40, 25, 9, 1]}
STEP = {"schedule": SCHEDULE, "x_t": X, "eps": Y, "t": 9, "prev": 5, "z": X, "eta": 0.5}
UNETS = {"widths": (8, 16), "blocks": (1, 2), "attention": (False, True), "image_size": 8}

# function: (its good call, {argument: (bad values, what the message names)})
TABLE = {
    ddim: (DDIM, {
        "model": (MODELS, "model"), "schedule": (SCHEDULES, "schedule"), "x_T": (STATES, "x_T"), "steps": (STEPS, "steps"),
        "eta": (ETAS, "eta"), "noise": (NOISES, "noise|seeds"), "clip": (CLIPS, "clip"),
    }),
    ddpm: ({"model": SPY, "schedule": SCHEDULE, "x_T": X}, {
        "model": (MODELS, "model"), "schedule": (SCHEDULES, "schedule"), "x_T": (STATES, "x_T"),
        "noise": (NOISES, "noise|seeds"), "clip": (CLIPS, "clip"), "variance": (["learned", None, 1.0], "variance"),
    }),
    ddim_ab2: (DDIM, {
        "model": (MODELS, "model"), "schedule": (SCHEDULES, "schedule"), "x_T": (STATES, "x_T"), "steps": (STEPS, "steps"),
    }),
    invert: ({"model": SPY, "schedule": SCHEDULE, "x_0": IMAGE, "steps": [40, 25, 9, 1]}, {
        "model": (MODELS, "model"), "schedule": (SCHEDULES, "schedule"), "x_0": ([*STATES, 127 * IMAGE], "x_0"),
        "steps": (STEPS, "steps"), "iterations": ([-1, *NO_INTEGERS], "iterations"),
    }),
    sample: ({"model": NETWORK, "schedule": SCHEDULE, "shape": (2, 1, 2, 2), "steps": 4, "seed": 0, "labels": [0, 2]}, {
        "model": (MODELS, "model"), "schedule": (SCHEDULES, "schedule"), "x_T": ([*STATES[1:], X[:1]], "x_T"),
        "shape": ([None, 2, "2122", (2, 1, 2, 10**30), (2, 2), (0, 1, 2, 2), (2, 1, 2.0, 2), (2, 1, 2, -2)], "shape"),
        "steps": (STEPS, "steps"), "eta": (ETAS, "eta"), "clip": (CLIPS, "clip"), "seed": (SEEDS, "seed"),
        "labels": ([*LABELS[:4], *LABELS[5:], [0], [0, 1, 2]], "labels"), "batch_size": ([0, -1, *NO_INTEGERS], "batch_size"),
        "spacing": (["uniform", None, 3], "spacing"), "first": (SEEDS, "first|start"),
        "guidance": ([-1.0, 1e300, *NO_NUMBERS], "guidance"),
    }),
    ddim_step: (STEP, {
        "schedule": (SCHEDULES, "schedule"),
        "x_t": (PARTNERS, "x_t"), "eps": (PARTNERS, "eps"), "z": (PARTNERS, "z"), "t": ([-1, 41, 2.5, None, "3"], r"\bt\b"),
        "prev": ([-1, 41, 2.5, "3"], "prev"), "eta": (ETAS, "eta"), "clip": (CLIPS, "clip"),
    }),
    ddpm_step: ({"schedule": SCHEDULE, "x_t": X, "eps": Y, "t": 9, "z": X}, {
        "x_t": (PARTNERS, "x_t"), "eps": (PARTNERS, "eps"), "z": (PARTNERS, "z"), "t": ([0, -1, 41, 2.5, "3"], r"\bt\b"),
        "clip": (CLIPS, "clip"), "variance": (["learned", None], "variance"),
    }),
    ddim_sigma: ({"schedule": SCHEDULE, "t": 9, "prev": 5, "eta": 0.5}, {
        "schedule": (SCHEDULES, "schedule"),
        "t": ([-1, 41, 4, 2.5, True], r"\bt\b"), "prev": ([-1, 9, 12, 41, 2.5], "prev"), "eta": (ETAS, "eta"),
    }),
    SCHEDULE.add_noise: ({"x_0": X, "t": 3, "noise": Y}, {
        "x_0": (PARTNERS, "x_0"), "noise": (PARTNERS, "noise"), "t": (TIMES + LENGTHS, r"\bt\b"),
    }),
    SCHEDULE.predict_x0: ({"x_t": X, "t": 3, "eps": Y}, {
        "x_t": (PARTNERS, "x_t"), "eps": (PARTNERS, "eps"), "t": (TIMES + LENGTHS, r"\bt\b"),
    }),
    SCHEDULE.predict_eps: ({"x_t": X, "t": 3, "x_0": Y}, {
        "x_t": (PARTNERS, "x_t"), "x_0": (PARTNERS, "x_0"), "t": ([0, *TIMES, *LENGTHS], r"\bt\b"),
    }),
    SCHEDULE.posterior: ({"x_0": X, "x_t": Y, "t": 3}, {
        "x_0": (PARTNERS, "x_0"), "x_t": (PARTNERS, "x_t"), "t": ([0, *TIMES, *LENGTHS], r"\bt\b"),
    }),
    SCHEDULE.posterior_variance: ({"t": 5, "prev": 3}, {
        "t": ([0, 3, 2, *TIMES], r"\bt\b"),
        "prev": ([5, 6, torch.tensor([3, 6]), *(t for t in TIMES if t is not None)], "prev"),
    }),
    SCHEDULE.snr: ({"t": 5}, {"t": (TIMES, r"\bt\b")}),
    SCHEDULE.respaced: ({"steps": [9, 5]}, {"steps": (STEPS, "steps")}),
    NoiseSchedule: ({"betas": [0.1, 0.2]}, {
        "betas": ([[], 0.1, [[0.1]], [0.0], [1.0], [1.0, 0.1], [-0.1], [math.nan], [math.inf], "ab", None, ["a"], [10**400],
                   torch.tensor([0.1 + 1j])], "beta"),
    }),
    NoiseSchedule.linear: ({"T": 10}, {
        "T": ([0, -3, None, 10**12, *NO_INTEGERS], r"\bT\b"), "beta_start": ([0.0, *NO_NUMBERS], "beta"),
        "beta_end": ([1.5, 2], "β"),
    }),
    NoiseSchedule.cosine: ({"T": 10}, {
        "T": ([0, -3, None, *NO_INTEGERS], r"\bT\b"), "s": ([-0.1, *NO_NUMBERS], r"\bs\b"),
        "beta_max": ([0.0, -1, 1.5, *NO_NUMBERS], "beta_max"),
    }),
    NoiseSchedule([0.5]).zero_terminal_snr: (None, {"": ([None], "T")}),
    timesteps: ({"T": 40, "S": 5}, {
        "T": ([0, -1, None, SCHEDULE, *NO_INTEGERS], r"\bT\b"), "S": ([0, -1, 41, None, *NO_INTEGERS], "number of steps"),
        "spacing": (["uniform", None, 3, ["leading"]], "spacing"),
    }),
    SeededNoise: ({"seeds": [1, 2]}, {"seeds": ([3, None, [-1], [2**64], [1.0], ["a"], [True], X], "seed")}),
    SeededNoise.from_seed: ({"seed": 3, "n": 2}, {
        "seed": (SEEDS, "seed"), "n": ([-1, None, 2**32 + 1, *NO_INTEGERS], r"\bn\b"),
        "start": ([2**32 - 1, *SEEDS], r"start|\bn\b"),
    }),
    SeededNoise([1, 2]).initial: ({"shape": (1, 2, 2)}, {"shape": ([5, None, {}, (0, 2), (-1,), (2.0,), ("a",)], "shape")}),
    SeededNoise([1, 2]): ({"like": X}, {"like": ([*NO_TENSOR, *NO_FLOATS, X[:1], torch.zeros(3, 1, 2, 2)], "like|seeds")}),
    sample_seeds: ({"seed": 3, "n": 2}, {"seed": (SEEDS, "seed"), "n": ([-1, *NO_INTEGERS], r"\bn\b")}),
    lerp: ({"a": X, "b": Y, "weight": 0.5}, {
        "a": ([*PARTNERS, *NOT_FINITE], r"\ba\b"), "b": ([*PARTNERS, *NOT_FINITE], r"\bb\b"),
        "weight": ([*NO_NUMBERS, torch.linspace(0, 1, 3)], "weight"),
    }),
    slerp: ({"a": X, "b": Y, "weight": 0.5}, {
        "a": ([*PARTNERS, *NOT_FINITE, 0 * X, -Y], r"\ba\b"), "b": ([*PARTNERS, *NOT_FINITE], r"\bb\b"),
        "weight": ([*NO_NUMBERS, torch.linspace(0, 1, 3)], "weight"),
    }),
    last: ({"states": iter([X] * 100)}, {"states": ([X, [], iter([]), 3, None], "states")}),
    LabelledDenoiser: ({"model": NETWORK, "labels": [0, 2]}, {
        "model": ([nn.Identity(), SPY], "num_classes"), "labels": (LABELS, "labels"),
    }),
    GuidedDenoiser: ({"model": NETWORK, "labels": [0, 2], "scale": 2.0}, {
        "model": ([nn.Identity(), DiffusersDenoiser(Rows())], "num_classes"), "labels": (LABELS, "labels"),
        "scale": ([-0.5, *NO_NUMBERS], "guidance scale"),
    }),
    PredictionDenoiser: ({"network": NETWORK, "schedule": SCHEDULE, "prediction": "v"}, {
        "prediction": (["velocity", None, 1], "prediction"), "schedule": (SCHEDULES, "schedule"),
    }),
    DiffusersDenoiser: ({"unet": Rows()}, {
        "unet": ([type("Pipeline", (), {"unet": Rows()})(), nn.Linear(2, 2), None], "pipeline"),
        "prediction": (["v_prediction", "velocity"], "schedule|prediction"),
    }),
    accelerate: ({"model": NETWORK}, {
        "model": ([SPY, None, "mnist", accelerate(NETWORK)], "accelerate"), "graph": ([True], "graph"),
    }),
    GaussianMixture: ({"means": torch.zeros(2, 1, 1, 1), "stds": [1.0, 0.5]}, {
        "means": ([torch.zeros(3, 1, 1, 1), torch.full((2, 1, 1, 1), math.nan), 3.0, None, "ab", [None, 1.0], 10**400,
                   torch.zeros(2, 1, 1, 1, dtype=torch.complex64)], "mean"),
        "stds": ([[1.0], [1.0, -0.5], [1.0, math.nan], [1.0, math.inf], None, "ab", 1.0, [[1.0], [0.5]]], "std"),
        "weights": ([[1.0], [1.0, 0.0], [1.0, math.nan], [1.0, math.inf], "ab", 1.0, [[1.0], [0.5]]], "weights"),
    }),
    MIXTURE.log_density: ({"x": X, "alpha_bar": 0.5}, {
        "x": ([*NO_TENSOR, *NO_FLOATS, X[0], X[None]], r"\bx\b"), "alpha_bar": ([-0.1, 1.1, *NO_NUMBERS], "alpha_bar"),
    }),
    gaussian(0.0, 0.0).log_density: ({"x": X, "alpha_bar": 0.5}, {"alpha_bar": ([1.0, 1], "point mass")}),
    MIXTURE.draw: ({"n": 3}, {"n": ([0, -1, *NO_INTEGERS], r"\bn\b")}),
    MIXTURE.denoiser(SCHEDULE): ({"x": X, "t": torch.tensor([3, 3])}, {
        "t": ([torch.tensor([3, 4]), torch.tensor([0, 0]), torch.tensor([41, 41]), torch.tensor([-1, -1]),
               None, "3", 2.5], r"\bt\b"),
    }),
    GaussianMixture(torch.zeros(2, 1, 2, 2), [1.0, 0.5]).log_density: ({"x": X, "alpha_bar": 0.5}, {
        "x": ([X[..., :1], torch.zeros(2, 1, 2, 3)], r"\bx\b"),
    }),
    MIXTURE.denoiser: ({"schedule": SCHEDULE}, {"schedule": (SCHEDULES, "schedule")}),
    gaussian: ({"mean": 0.0, "std": 1.0}, {
        "mean": ([None, "x", math.nan, 10**400], "mean"), "std": ([None, "x", -1.0, math.nan], "std"),
    }),
    UNET: ({"x": X.float(), "t": torch.tensor([3, 4]), "labels": torch.tensor([0, 2])}, {
        "x": ([*NO_TENSOR, *NO_FLOATS, X[0], torch.zeros(2, 3, 2, 2)], r"\bx\b|takes"),
        "t": ([3, None, [3, 4], np.array([3, 4]), torch.tensor(3), torch.tensor([3]), torch.tensor([[3], [4]])], r"\bt\b"),
        "labels": ([0, [0, 2], np.array([0, 2]), torch.tensor(0), torch.tensor([0])], "labels"),
    }),
    UNet(1, (8,), (1,), (False,), 2): ({"x": X.float(), "t": torch.tensor([3, 4])}, {
        "labels": ([torch.tensor([0, 2])], "without classes"),
    }),
    to_bytes: ({"images": IMAGE}, {"images": ([*NO_TENSOR, *NO_FLOATS, *NOT_FINITE], "images")}),
    to_model_range: ({"images": BYTES}, {"images": ([*NO_TENSOR, X, *NO_FLOATS[1:]], "takes bytes")}),
    with_channels: ({"images": BYTES, "channels": 3}, {
        "images": ([*NO_TENSOR, X, *NO_FLOATS[1:], BYTES[0]], "images"), "channels": ([2, 0, None], "channels"),
    }),
    image_grid: ({"images": IMAGE, "columns": 2}, {
        "images": ([*NO_TENSOR, *NO_FLOATS, *NOT_FINITE, X[0], X[:0], torch.zeros(2, 2, 2, 2)], "images|channels"),
        "columns": ([0, -1, None, *NO_INTEGERS], "columns"), "border": ([-1, None, *NO_INTEGERS], "border"),
    }),
    show_rows: ({"rows": {"a": IMAGE}}, {"rows": ([{}, [], None, IMAGE], "rows|row")}),
    check_picture: ({"path": "a.png", "shape": (4, 1, 8, 8), "columns": 2, "scale": 1}, {
        "columns": ([0, -1, *NO_INTEGERS], "columns"), "scale": ([0, -1, 10**6, *NO_INTEGERS], "scale"),
        "path": (["a", "a.txt", ""], "not the name of a picture"),
        "shape": ([(10**9, 1, 8, 8), (2, 1, 8, 10**5)], "more than can be written"),
    }),
    noise_loss: ({"eps": X, "noise": Y}, {"eps": (PARTNERS, "eps"), "noise": (PARTNERS, "noise")}),
    UNet: (UNETS, {
        "channels": ([0, -1, 1000, *NO_INTEGERS], "channels"), "groups": ([0, 3, *NO_INTEGERS], "groups|multiples"),
        "widths": ([8, "8", [8], (8, 12), (0, 8), (8, 10**6), (8.0, 16.0)], "width"),
        "blocks": ([1, (1,), (100_000, 1), (0, 1), (1, 1.5)], "blocks"),
        "attention": ([True, (True,), ("no", "yes")], "attention"),
        "image_size": ([0, 7, -8, (8, 7), (8, 8, 8), 8.0, "8"], "image_size"),
        "num_classes": ([0, -1, *NO_INTEGERS], "num_classes"), "dropout": ([-0.1, 1.0, 1.5, *NO_NUMBERS], "dropout"),
    }),
    check_images: ({"name": "images", "images": IMAGE}, {"images": ([*STATES, 127.5 * IMAGE + 127.5], "images")}),
    check_bytes: ({"name": "images", "images": torch.zeros(2, 1, 2, 2, dtype=torch.uint8)}, {
        "images": ([*NO_TENSOR, X, *NO_FLOATS[1:], NO_FLOATS[0][0], NO_FLOATS[0][:0]], "images"),
    }),
    check_labels: ({"labels": [0, 2], "num_classes": 3, "n": 2}, {
        "labels": ([*LABELS, [0], [0, 1, 2]], "labels"), "num_classes": ([None, 2], "labels"),
    }),
}  # fmt: skip


def name_of(function) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


ROWS = [
    pytest.param(function, good, argument, value, named, id=f"{name_of(function)}-{argument}-{i}")
    for function, (good, arguments) in TABLE.items()
    for argument, (values, named) in arguments.items()
    for i, value in enumerate(values)
]


def call(function, arguments):
    return function() if arguments is None else function(**arguments)


def test_the_table_is_long():
    assert len(ROWS) >= 300


@pytest.mark.parametrize("function", [f for f, (good, _) in TABLE.items() if good is not None], ids=name_of)
def test_the_good_call_is_good(function):
    """Otherwise the rows below would prove nothing."""
    call(function, TABLE[function][0])


@pytest.mark.parametrize(("function", "good", "argument", "value", "named"), ROWS)
def test_bad_input_is_refused_by_name_and_before_any_evaluation(function, good, argument, value, named):
    SPY.times.clear()
    Conditional.calls = 0
    with pytest.raises((ValueError, KindError)) as error:
        call(function, good if good is None else good | {argument: value})
    message = str(error.value)
    assert re.search(named, message), message
    assert 20 <= len(message) <= 400, message
    where = Path(traceback.extract_tb(error.tb)[-1].filename)
    assert where.parent == Path(ddimlib.__file__).parent, f"the error comes from {where}: {message}"
    assert SPY.times == []
    assert Conditional.calls == 0
