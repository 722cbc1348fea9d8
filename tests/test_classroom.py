"""The problem sets, and their grading: right answers, slips with their hints, and submissions that try to break the grader.

Each submission is made here, out of the released notebook and the solutions, changed at one place.
"""

import argparse
import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import torch

from classroom import __main__ as program
from classroom import reports
from classroom.__main__ import main
from classroom.checks import Reference, Student, grade, run_check, students_cells
from classroom.course import RELEASED, ROOT, release
from classroom.notebooks import (
    definitions,
    hidden_tests_removed,
    key_of,
    parse_cells,
    problem_sets,
    submissions,
)
from classroom.sandbox import ANSWER_KEYS, Process, Sandbox, Stopped, StudentError

SETS = problem_sets(ROOT / "assignments" / "source")
PATIENCE = 30.0  # seconds for one answer, on a busy machine


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def references():
    os.environ["DDIM_GRADING_SEED"] = "11"
    return {name: Reference(ps) for name, ps in SETS.items()}


def released(name):
    return nbformat.read(RELEASED / name / f"{name}.ipynb", as_version=4)


def filled(name, changes=(), answers=None):
    """The released notebook with the solutions, or `answers`, after replacements (grade_id, old, new)."""
    notebook = released(name)
    solutions = {c.grade_id: c.source for c in SETS[name].cells if c.solution} if answers is None else dict(answers)
    for grade_id, old, new in changes:
        assert old in solutions[grade_id], f"{old!r} is not in the solution of {grade_id}"
        solutions[grade_id] = solutions[grade_id].replace(old, new)
    for cell in notebook.cells:
        grade_id = cell.metadata.get("nbgrader", {}).get("grade_id")
        if grade_id in solutions:
            cell.source = solutions[grade_id]
    return notebook


def cells_of(notebook):
    return parse_cells(nbformat.writes(notebook).encode())


def verdicts(name, notebook, sandbox, references, checks=None, seconds=PATIENCE):
    """The message of each check that failed, by its grade_id without the name of the set."""
    cells, _ = students_cells(SETS[name], cells_of(notebook))
    student = Student(sandbox, SETS[name], references[name], cells, seconds, 10 * seconds)
    try:
        results = [run_check(c, student) for c in SETS[name].checks if checks is None or c.grade_id in checks]
    finally:
        student.stop()
    return {v.grade_id.removeprefix(f"{name}-").removesuffix("-check"): v.message for v in results if v.message}


# The released notebooks


@pytest.fixture(scope="module")
def released_again(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    release(list(SETS), folder, tmp_path_factory.mktemp("scratch"))
    return folder


@pytest.mark.parametrize("name", SETS)
def test_released_notebooks_are_in_step_with_their_sources(name, released_again):
    assert (released_again / name / f"{name}.ipynb").read_text() == (RELEASED / name / f"{name}.ipynb").read_text(), (
        "run `make release`"
    )


@pytest.mark.parametrize("name", SETS)
def test_released_notebooks_hold_no_solutions_and_no_hidden_tests(name):
    text = (RELEASED / name / f"{name}.ipynb").read_text()
    assert "BEGIN" not in text
    assert "fresh()" not in text
    given = {c.grade_id: c.source for c in cells_of(released(name))}
    for cell in SETS[name].solutions:
        secret = cell.source.split("### BEGIN SOLUTION\n")[1].split("### END SOLUTION")[0].splitlines()
        assert "raise NotImplementedError()" in given[cell.grade_id]
        shown = {line.strip() for line in given[cell.grade_id].splitlines()}
        assert not {line.strip() for line in secret if line.strip()} & shown


@pytest.mark.parametrize("name", SETS)
def test_every_check_has_a_visible_part_a_hidden_part_and_a_title(name):
    for check in SETS[name].checks:
        assert check.source.startswith("# Check: "), check.grade_id
        assert check.points > 0
        assert len(hidden_tests_removed(check.source).splitlines()) > 1, check.grade_id
        assert "### BEGIN HIDDEN TESTS" in check.source or check.grade_id.endswith("reached-check"), check.grade_id


@pytest.mark.parametrize("name", SETS)
def test_released_cells_can_be_read_on_a_page(name):
    for cell in released(name).cells:
        if cell.cell_type == "code":
            lines = cell.source.splitlines()
            assert len(lines) <= 25, f"{len(lines)} lines: {lines[0]}"
            assert max(map(len, lines)) <= 88, max(lines, key=len)


@pytest.mark.parametrize("name", SETS)
def test_the_points_in_the_text_are_those_of_the_checks(name):
    import re

    text = "\n".join(c.source for c in SETS[name].cells if c.kind == "markdown")
    assert f"There are {SETS[name].points:g} points." in text
    assert sum(map(int, re.findall(r"^## Question \d+.*\((\d+) points?\)$", text, re.MULTILINE))) == SETS[name].points


# Right, untouched, half right


@pytest.mark.parametrize("name", SETS)
def test_the_solutions_pass_every_check(name, sandbox, references):
    result = grade(SETS[name], references[name], cells_of(filled(name)), sandbox, PATIENCE, 10 * PATIENCE)
    assert not {v["grade_id"]: v["message"] for v in result["verdicts"] if v["message"]}
    assert result["remarks"] == []
    assert sum(v["points"] for v in result["verdicts"]) == sum(c.points for c in SETS[name].checks)


@pytest.mark.parametrize("name", SETS)
def test_an_untouched_notebook_gets_nothing_and_is_told_why(name, sandbox, references):
    found = verdicts(name, released(name), sandbox, references)
    assert len(found) == len(SETS[name].checks)
    assert set(found.values()) == {"Not written yet."}


@pytest.mark.parametrize("name", SETS)
def test_wrong_early_functions_cost_their_own_points_only(name, sandbox, references):
    """Each function alone is made to raise; all others, which may call it, keep their points."""
    for part in SETS[name].solutions[:4]:
        if "def " not in part.source:
            continue
        broken = filled(
            name,
            answers={c.grade_id: c.source for c in SETS[name].solutions}
            | {part.grade_id: part.source.split("    ### BEGIN SOLUTION")[0] + "    raise ZeroDivisionError('mine')"},
        )
        found = verdicts(name, broken, sandbox, references)
        own = {c.grade_id for c in SETS[name].checks if set(c.own) & set(_names(part))}
        assert set(found) == {g.removeprefix(f"{name}-").removesuffix("-check") for g in own}
        assert all("ZeroDivisionError: mine (cell" in message and "line" in message for message in found.values()), (
            found
        )


def _names(cell):
    from classroom.notebooks import defined_names

    return defined_names(cell.source)


# Slips: (set, solution cell, right, wrong, the checks that must fail, what the hint must say)

SLIPS = [
    ("ps1", "one-step", "beta**0.5 * z", "beta * z", {"one-step"}, "with β in place of √β"),
    ("ps1", "one-step", "(1 - beta) ** 0.5", "(1 - beta)", {"one-step"}, "1 - β in place of its root"),
    ("ps1", "one-step", "(1 - beta) ** 0.5 *", "", {"one-step"}, "nothing is shrunk"),
    ("ps1", "one-step", "(1 - beta) ** 0.5", "(1 - beta**0.5)", {"one-step"}, "1 - √β in place of √(1-β)"),
    (
        "ps1",
        "products",
        "torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(keep, dim=0)])",
        "torch.cumprod(keep, dim=0)",
        {"products"},
        "off by one",
    ),
    (
        "ps1",
        "products",
        "1 - betas.to(torch.float64)",
        "betas.to(torch.float64)",
        {"products"},
        "betas themselves are multiplied",
    ),
    ("ps1", "products", "torch.float64", "torch.float32", {"products"}, "differ"),
    ("ps1", "jump", "a.sqrt() * images", "a * images", {"jump-alike", "jump-each"}, "with ᾱ in place of √ᾱ"),
    ("ps1", "jump", "(1 - a).sqrt()", "(1 - a)", {"jump-alike", "jump-each"}, "1 - ᾱ in place of its root"),
    (
        "ps1",
        "jump",
        "abar[times]",
        "(abar[times] / abar[(times - 1).clamp(min=0)])",
        {"jump-alike", "jump-each"},
        "α_t in place of ᾱ_t",
    ),
    ("ps1", "jump", "abar[times]", "abar[(times - 1).clamp(min=0)]", {"jump-alike", "jump-each"}, "too early"),
    ("ps1", "jump", "(1 - a).sqrt()", "(1 - a.sqrt())", {"jump-alike", "jump-each"}, "1 - √ᾱ in place of √(1-ᾱ)"),
    ("ps1", "jump", "abar[times]", "abar[times[:1]].expand(len(times))", {"jump-each"}, "time of the first image"),
    ("ps1", "jump", ".reshape(-1, *[1] * (images.ndim - 1))", "", {"jump-alike", "jump-each"}, "factors of shape [B]"),
    (
        "ps1",
        "posterior",
        "before / left * (1 - alpha)\n",
        "(before / left * (1 - alpha)) ** 0.5\n",
        {"posterior-variance"},
        "σ, the root, in place of σ²",
    ),
    (
        "ps1",
        "posterior",
        "return mean, before / left * (1 - alpha)",
        "return mean, 1 - alpha",
        {"posterior-variance"},
        "β_t in place of β̃_t",
    ),
    ("ps1", "posterior", "float(abar[t - 1]) ** 0.5 *", "float(abar[t - 1]) *", {"posterior-mean"}, "ᾱ in place of √ᾱ"),
    ("ps1", "ancestral", " if t > 1 else mean", "", {"ancestral-last"}, "noise on the last step"),
    (
        "ps1",
        "ancestral",
        "(1 - alpha) ** 0.5 * z",
        "(1 - alpha) * z",
        {"ancestral-noise"},
        "β, a variance, in place of σ",
    ),
    (
        "ps1",
        "ancestral",
        "alpha = float(abar[t] / abar[t - 1])",
        "alpha = float(abar[t])",
        {"ancestral-mean", "ancestral-noise"},
        "",
    ),
    (
        "ps1",
        "ancestral",
        "(1 - float(abar[t])) ** 0.5 * eps",
        "(1 - float(abar[t])) * eps",
        {"ancestral-mean"},
        "1 - ᾱ in place of its root",
    ),
    ("ps1", "walk", "len(abar) - 1", "1000", {"walk"}, "fix the number of steps"),
    ("ps1", "walk", "noises[i]", "noises[-1 - i]", {"walk"}, "from the last to the first"),
    ("ps1", "walk", "range(T, 0, -1)", "range(T - 1, -1, -1)", {"walk"}, "step from t = 0"),
    (
        "ps1",
        "seeded",
        "torch.stack(drawn)",
        "torch.randn(len(seeds), *shape, generator=torch.Generator().manual_seed(seeds[0]))",
        {"seeded"},
        "depends on the batch",
    ),
    ("ps1", "loss", ".mean()", ".sum()", {"loss"}, "summed over pixels"),
    ("ps1", "loss", "- noise).square()", "- images).square()", {"loss"}, "compared with the image"),
    ("ps1", "train", "        loss.backward()\n", "", {"train"}, "weights hardly changed"),
    ("ps1", "train", "        optimizer.zero_grad()\n", "", {"train"}, "set to zero"),
    ("ps1", "train", "randint(1, len(abar), ", "randint(1, len(abar) - 1, ", {"train"}, "both ends included"),
    ("ps1", "train", "randint(1, len(abar), ", "randint(len(abar), ", {"train"}, "both ends included"),
    ("ps1", "train", "len(abar), (batch,))", "len(abar), (1,)).expand(batch)", {"train"}, "a time for each image"),
    ("ps1", "train", "torch.randn_like", "torch.rand_like", {"train"}, "Gaussian"),
    (
        "ps2",
        "times",
        "[i * T // S for i in range(S, 0, -1)]",
        "list(range(T, 0, -(T // S)))",
        {"times"},
        "does not divide T",
    ),
    ("ps2", "times", "range(S, 0, -1)", "range(S - 1, -1, -1)", {"times"}, "off by one"),
    ("ps2", "times", "i * T // S", "round(i * T / S)", {"times"}, "rounded, not cut"),
    ("ps2", "times", "i * T // S", "i * T // S - 1", {"times"}, "one time step too early"),
    (
        "ps2",
        "times",
        "[i * T // S for i in range(S, 0, -1)]",
        "torch.linspace(T, 1, S).long().tolist()",
        {"times"},
        "as of linspace",
    ),
    ("ps2", "image", "/ a**0.5", "/ a", {"image"}, "ᾱ in place of √ᾱ"),
    ("ps2", "image", "(1 - a) ** 0.5", "(1 - a)", {"image"}, "1 - ᾱ in place of its root"),
    ("ps2", "move", " + (1 - a_to) ** 0.5 * eps", "", {"move"}, "no noise is put back"),
    ("ps2", "move", "(1 - a_to) ** 0.5 * eps", "(1 - a_from) ** 0.5 * eps", {"move"}, "all of the old noise"),
    ("ps2", "sigma", " ** 0.5", "", {"sigma"}, "a variance, in place of σ"),
    ("ps2", "sigma", "eta * (", "(eta * ", {"sigma"}, "η is put under the root"),
    ("ps2", "family", "sigma**2", "sigma", {"family"}, "with σ in place of σ² under the root"),
    ("ps2", "family", " - sigma**2", "", {"family"}, "the old noise is not reduced"),
    ("ps2", "family", "sigma * z", "sigma**2 * z", {"family"}, "a variance, in place of σ"),
    ("ps2", "limited", "(x - a**0.5 * image) / (1 - a) ** 0.5", "eps", {"limited"}, "clipped but ε is kept"),
    ("ps2", "limited", ".clamp(-1, 1)", "", {"limited"}, "not limited"),
    ("ps2", "guided", "scale * (", "(1 + scale) * (", {"guided"}, "1 + w in place of w"),
    ("ps2", "sampler", "times[i + 1] if i + 1 < len(times) else 0", "t - 1", {"sampler"}, ""),
    ("ps2", "sampler", "enumerate(times)", "enumerate(times[:-1])", {"sampler"}, "asked"),
    ("ps2", "sampler", "noises[i]", "noises[0]", {"sampler"}, "the noise of the first step in all"),
    (
        "ps2",
        "spread",
        "zip(times, [*times[1:], 0])",
        "zip(times, times[1:])",
        {"spread"},
        "the last step, to t = 0, is missing",
    ),
    ("ps2", "mended-a", "zip(times, [*times[1:], 0])", "((t, t - 1) for t in times)", {"mended-a"}, "still does"),
    (
        "ps2",
        "mended-b",
        "        eps = (x - a_from**0.5 * image) / (1 - a_from) ** 0.5\n",
        "",
        {"mended-b"},
        "clipped but ε is kept",
    ),
    ("ps2", "mended-b", ".clamp(-1, 1)", "", {"mended-b"}, "the implied image is not limited"),
    ("ps2", "mended-c", " - variance) ** 0.5", ") ** 0.5", {"mended-c"}, "still does"),
    ("ps2", "mended-c", "(1 - a_from / a_to)", "(1 - a_from / a_to) * 0", {"mended-c"}, "without any noise"),
    ("ps3", "there", "x / a**0.5", "x / a", {"there"}, "ᾱ in place of √ᾱ"),
    ("ps3", "there", "((1 - a) / a) ** 0.5", "(1 - a) / a", {"there"}, "in place of their roots"),
    ("ps3", "there", "((1 - a) / a) ** 0.5", "(1 - a) ** 0.5 / a", {"there"}, "ᾱ in place of √ᾱ below"),
    ("ps3", "back", "(1 + s**2) ** 0.5", "(1 + s**2)", {"back"}, "ᾱ in place of √ᾱ"),
    ("ps3", "euler", "slope(line, s)", "slope(line, following)", {"euler"}, "where the steps start"),
    ("ps3", "euler", "(following - s)", "(s - following)", {"euler"}, "sign of the step"),
    (
        "ps3",
        "order",
        "[steps, errors]",
        "[steps[:: len(steps) - 1], errors[:: len(steps) - 1]]",
        {"order"},
        "ends alone",
    ),
    ("ps3", "order", "return -float", "return float", {"order"}, "with the sign turned"),
    ("ps3", "order", "x - x.mean(), ", "(x - x.mean()) / math.log(10), ", {"order"}, "log of base 10"),
    (
        "ps3",
        "circle",
        "return (u * a + v * b) / torch.sin(omega)",
        "return torch.lerp(a, b, w)",
        {"circle"},
        "(lerp)",
    ),
    (
        "ps3",
        "circle",
        "omega = torch.arccos((x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1)))",
        "omega = torch.arccos((x * y).sum() / (x.norm() * y.norm())).expand(len(a))",
        {"circle"},
        "",
    ),
    (
        "ps3",
        "encode",
        "torch.full((len(x),), t)",
        "torch.full((len(x),), s)",
        {"encode"},
        "the times that the steps go to",
    ),
    ("ps3", "decode", "[*times[-2::-1], 0]", "times[-2::-1]", {"decode"}, "asked at"),
    ("ps3", "trip", ".square().mean().sqrt()", ".abs().mean()", {"trip"}, "mean of the absolute differences"),
    ("ps3", "trip", ".sqrt()", "", {"trip"}, "mean square in place of its root"),
    ("ps3", "trip", ".mean().sqrt()", ".mean((1, 2, 3)).sqrt().mean()", {"trip"}, "and then averaged"),
    ("ps3", "circle", "(u * a + v * b)", "(v * a + u * b)", {"circle"}, "w and 1 - w exchanged"),
    (
        "ps3",
        "circle",
        "    return (u * a + v * b) / torch.sin(omega)",
        "    line = torch.lerp(a, b, w)\n    size = x.norm(dim=1) / line.flatten(1).norm(dim=1)\n"
        "    return line * size.reshape(omega.shape)",
        {"circle"},
        "scaled to the length of a",
    ),
    ("ps3", "circle", " / (x.norm(dim=1) * y.norm(dim=1))", "", {"circle"}, "no cosine"),
    ("ps3", "edit", "encode(with_label(old)", "encode(with_label(new)", {"edit"}, "the label 3 twice"),
]


@pytest.mark.parametrize(
    ("name", "part", "right", "wrong", "failing", "hint"),
    SLIPS,
    ids=[f"{s[0]}-{s[1]}-{i}" for i, s in enumerate(SLIPS)],
)
def test_a_slip_fails_its_checks_and_gets_its_hint(name, part, right, wrong, failing, hint, sandbox, references):
    notebook = filled(name, [(f"{name}-{part}", right, wrong)])
    checks = {
        c.grade_id
        for c in SETS[name].checks
        if set(c.own) & set(_names(next(s for s in SETS[name].solutions if s.grade_id == f"{name}-{part}")))
    }
    found = verdicts(name, notebook, sandbox, references, checks)
    assert set(found) == failing, found
    if hint != "differ":
        assert any(hint in message for message in found.values()), found


# The ten commonest slips, at each place where a student can make them and in several hands. Here no process is started: the
# cells are run as in a student's notebook, so that the hint is seen to come from the visible part of the check already.

TEN = {
    "β for √β": {
        "with β in place of √β": {
            "ps1-one-step": [
                "one_step = lambda x, beta, z: math.sqrt(1 - beta) * x + beta * z",
                "def one_step(x, beta, z):\n    y = x * (1 - beta) ** 0.5\n    y += beta * z\n    return y",
                "std = lambda beta: beta\none_step = lambda x, beta, z: torch.einsum('k,k...->...',"
                " torch.tensor([(1 - beta) ** 0.5, std(beta)]), torch.stack([x, z]))",
            ],
        },
        "with β, a variance, in place of σ = √β": {
            "ps1-ancestral": [
                "def ancestral(x, eps, t, z, abar):\n    beta = 1 - abar[t] / abar[t - 1]\n"
                "    return (x - beta / (1 - abar[t]).sqrt() * eps) / (1 - beta).sqrt() + beta * z * (t > 1)",
            ],
        },
        "with √β": {
            "ps1-ancestral": [
                "def ancestral(x, eps, t, z, abar):\n    std = (1 - abar[t] / abar[t - 1]).sqrt()\n"
                "    return (x - std / (1 - abar[t]).sqrt() * eps) / (1 - std**2).sqrt() + std * z * (t > 1)",
            ],
            "ps1-posterior": [
                "def step_back(x_0, x_t, t, abar):\n    a, b = abar[t], abar[t - 1]\n    std = (1 - a / b).sqrt()\n"
                "    return (b.sqrt() * std * x_0 + (a / b).sqrt() * (1 - b) * x_t) / (1 - a), (1 - b) / (1 - a) * std",
            ],
        },
    },
    "ᾱ for √ᾱ": {
        "with ᾱ in place of √ᾱ": {
            "ps1-jump": [
                "def noisy(images, times, noise, abar):\n    a = abar[times].float()\n"
                "    return torch.einsum('b,b...->b...', a, images) + torch.einsum('b,b...->b...', (1 - a) ** 0.5, noise)",
                "def noisy(images, times, noise, abar):\n    x = images.clone()\n    for i, t in enumerate(times.tolist()):\n"
                "        x[i] *= float(abar[t])\n        x[i] += (1 - float(abar[t])) ** 0.5 * noise[i]\n    return x",
            ],
            "ps1-posterior": [
                "def step_back(x_0, x_t, t, abar):\n    a, b = abar[t], abar[t - 1]\n    beta = 1 - a / b\n"
                "    return (b * beta * x_0 + (a / b).sqrt() * (1 - b) * x_t) / (1 - a), (1 - b) / (1 - a) * beta",
            ],
            "ps2-image": [
                "implied_image = lambda x, eps, a: (x - (1 - a) ** 0.5 * eps) / a",
                "implied_image = lambda x, eps, a: x / a**0.5 - (1 - a) ** 0.5 / a * eps",
                "implied_image = lambda x, eps, a: torch.sub(x, eps, alpha=(1 - a) ** 0.5).mul(1 / a)",
            ],
            "ps2-move": [
                "move = lambda x, eps, a, b: b * implied_image(x, eps, a) + (1 - b) ** 0.5 * eps",
                "move = lambda x, eps, a, b: b / a * (x - (1 - a) ** 0.5 * eps) + (1 - b) ** 0.5 * eps",
                "move = lambda x, eps, a, b: b**0.5 * (x - (1 - a) ** 0.5 * eps) / a + (1 - b) ** 0.5 * eps",
            ],
            "ps2-family": [
                "def move_with_noise(x, eps, a, b, eta, z):\n    s = fresh_std(a, b, eta)\n"
                "    return b * implied_image(x, eps, a) + (1 - b - s * s) ** 0.5 * eps + s * z",
            ],
            "ps2-limited": [
                "def limited(x, eps, a):\n    image = implied_image(x, eps, a).clip(-1, 1)\n"
                "    return image, (x - a * image) / (1 - a) ** 0.5",
            ],
            "ps2-spread": [
                "spread = lambda times, abar: math.prod(float(a * b + ((1 - a) * (1 - b)).sqrt())"
                " for a, b in zip(abar[times], abar[[*times[1:], 0]]))",
            ],
            "ps2-mended-b": [
                "def mended_b(model, x, times, abar):\n    for t, to in zip(times, [*times[1:], 0]):\n"
                "        image = limited(x, model(x, torch.full((len(x),), t)), float(abar[t]))[0]\n"
                "        eps = (x - float(abar[t]) * image) / (1 - float(abar[t])) ** 0.5\n"
                "        x = float(abar[to]) ** 0.5 * image + (1 - float(abar[to])) ** 0.5 * eps\n    return x",
            ],
            "ps3-there": ["to_line = lambda x, a: (x / a, math.sqrt(1 / a - 1))"],
            "ps3-back": ["from_line = lambda line, s: line / (1 + s * s)"],
            "ps3-decode": [
                "def decode(model, code, times, abar):\n    x = code\n    for t, to in zip(times[::-1], [*times[-2::-1], 0]):\n"
                "        eps = model(x, torch.full((len(x),), t))\n        a, b = float(abar[t]), float(abar[to])\n"
                f"        x = {factor} * (x - (1 - a) ** 0.5 * eps) + (1 - b) ** 0.5 * eps\n    return x"
                for factor in ("b / a", "b / a**0.5", "b**0.5 / a")
            ],
            "ps3-encode": [
                "def encode(model, image, times, abar):\n    x = image\n    for s, t in zip([0, *times], times):\n"
                "        eps = model(x, torch.full((len(x),), t))\n        a, b = float(abar[s]), float(abar[t])\n"
                f"        x = {factor} * (x - (1 - a) ** 0.5 * eps) + (1 - b) ** 0.5 * eps\n    return x"
                for factor in ("b / a", "b / a**0.5", "b**0.5 / a")
            ],
        },
        "with 1 - ᾱ in place of its root": {
            "ps1-jump": [
                "def noisy(images, times, noise, abar):\n    a = abar[times].view(-1, *[1] * (images.ndim - 1))\n"
                "    return (a.sqrt() * images + (1 - a) * noise).float()",
            ],
            "ps2-image": ["implied_image = lambda x, eps, a: (x - (1 - a) * eps) / a**0.5"],
            "ps2-move": [
                "move = lambda x, eps, a, b: b**0.5 * implied_image(x, eps, a) + (1 - b) * eps",
                "move = lambda x, eps, a, b: (b / a) ** 0.5 * (x - (1 - a) * eps) + (1 - b) ** 0.5 * eps",
            ],
            "ps2-limited": [
                "def limited(x, eps, a):\n    image = implied_image(x, eps, a).clip(-1, 1)\n"
                "    return image, (x - a**0.5 * image) / (1 - a)",
            ],
            "ps3-there": ["to_line = lambda x, a: (x / a**0.5, (1 - a) / a**0.5)"],
            "ps3-encode": [
                "def encode(model, image, times, abar):\n    x = image\n    for s, t in zip([0, *times], times):\n"
                "        eps = model(x, torch.full((len(x),), t))\n        a, b = float(abar[s]), float(abar[t])\n"
                "        x = (b / a) ** 0.5 * (x - (1 - a) ** 0.5 * eps) + (1 - b) * eps\n    return x",
            ],
        },
    },
    "α for ᾱ": {
        "with α_t in place of ᾱ_t": {
            "ps1-jump": [
                "def noisy(images, times, noise, abar):\n    alpha = torch.cat([abar[:1], abar[1:] / abar[:-1]])\n"
                "    a = alpha[times].view(-1, *[1] * (images.ndim - 1))\n"
                "    return (a.sqrt() * images + (1 - a).sqrt() * noise).float()",
                "def noisy(images, times, noise, abar):  # in the noise alone\n    shape = (-1, *[1] * (images.ndim - 1))\n"
                "    alpha = (abar[times] / abar[times - 1]).view(shape)\n"
                "    return (abar[times].view(shape).sqrt() * images + (1 - alpha).sqrt() * noise).float()",
            ],
            "ps1-ancestral": [
                "def ancestral(x, eps, t, z, abar):\n    alpha = abar[t] / abar[t - 1]\n"
                "    return (x - (1 - alpha) / (1 - alpha).sqrt() * eps) / alpha.sqrt() + (1 - alpha).sqrt() * z * (t > 1)",
            ],
        },
        "with α_t in place of ᾱ_{t-1}": {
            "ps1-posterior": [
                "def step_back(x_0, x_t, t, abar):\n    a, b = abar[t], abar[t - 1]\n    alpha = a / b\n"
                "    return alpha.sqrt() * ((1 - alpha) * x_0 + (1 - b) * x_t) / (1 - a), (1 - b) / (1 - a) * (1 - alpha)",
            ],
        },
        "with ᾱ_t in place of α_t": {
            "ps1-ancestral": [
                "def ancestral(x, eps, t, z, abar):\n    beta = 1 - abar[t] / abar[t - 1]\n"
                "    return (x - beta / (1 - abar[t]).sqrt() * eps) / abar[t].sqrt() + beta.sqrt() * z * (t > 1)",
            ],
        },
    },
    "noise on the last step": {
        "with noise on the last step": {
            "ps1-ancestral": [
                "def ancestral(x, eps, t, z, abar):\n    beta = 1 - abar[t] / abar[t - 1]\n"
                f"    x = (x - beta / (1 - abar[t]).sqrt() * eps) / (1 - beta).sqrt()\n    {noise}\n    return x"
                for noise in ("x += beta.sqrt() * z", "x = x + beta.sqrt() * z if t > 0 else x")
            ],
            "ps1-walk": [
                "def walk_back(model, x, noises, abar):\n    for i, t in enumerate(range(len(abar) - 1, 0, -1)):\n"
                "        alpha = abar[t] / abar[t - 1]\n        eps = model(x, torch.full((len(x),), t))\n"
                "        x = (x - (1 - alpha) / (1 - abar[t]).sqrt() * eps) / alpha.sqrt() + (1 - alpha).sqrt() * noises[i]\n"
                "    return x",
            ],
        },
    },
    "off by one": {
        "off by one": {
            "ps1-products": [
                "running_products = lambda betas: torch.log1p(-betas.double()).cumsum(0).exp()",
                "running_products = lambda betas: torch.cat([torch.ones(1), 1 - betas]).double().cumprod(0)[:-1]",
                "running_products = lambda betas: torch.cat([torch.ones(2), 1 - betas[:-1]]).double().cumprod(0)",
            ],
            "ps2-times": [
                "visited = lambda T, S: [i * T // S for i in range(S)][::-1]",
                "visited = lambda T, S: [1 + i * T // S for i in range(S)][::-1]",
            ],
        },
        "one time step too": {
            "ps1-jump": [
                "def noisy(images, times, noise, abar):\n"
                f"    a = abar[{index}].view(-1, *[1] * (images.ndim - 1))\n"
                "    return (a.sqrt() * images + (1 - a).sqrt() * noise).float()"
                for index in ("times - 1", "times + 1", "(times + 1).clamp(max=len(abar) - 1)")
            ],
            "ps2-times": ["visited = lambda T, S: [(i + 1) * T // S - 1 for i in range(S)][::-1]"],
        },
        "with √ᾱ_t in place of √ᾱ_{t-1}": {
            "ps1-posterior": [
                "def step_back(x_0, x_t, t, abar):\n    a, b = abar[t], abar[t - 1]\n    beta = 1 - a / b\n"
                "    return (a.sqrt() * beta * x_0 + (1 - beta).sqrt() * (1 - b) * x_t) / (1 - a), (1 - b) / (1 - a) * beta",
            ],
        },
        "both ends included": {
            "ps1-train": [("randint(1, len(abar),", f"randint({ends},") for ends in ("1, len(abar) - 1", "len(abar)")]
        },
        "last step": {
            "ps2-spread": [
                "spread = lambda times, abar: math.prod(math.sqrt(a * b) + math.sqrt((1 - a) * (1 - b))"
                " for a, b in zip(abar[times].tolist(), abar[times[1:]].tolist()))",
            ],
            "ps2-mended-a": [("[*times[1:], 0]", "times[1:]")],
            "ps2-sampler": [
                ("times[i + 1] if i + 1 < len(times) else 0", "times[i + 1]"),
                ("if i + 1 < len(times) else 0", "if i + 1 < len(times) else 1"),
            ],
        },
        "steps end at t - 1": {"ps2-sampler": [("times[i + 1] if i + 1 < len(times) else 0", "t - 1")]},
    },
    "σ for σ²": {
        "with σ, the root, in place of σ²": {
            "ps1-posterior": [
                "def step_back(x_0, x_t, t, abar):\n    a, b = abar[t], abar[t - 1]\n    beta = 1 - a / b\n"
                "    mean = (b.sqrt() * beta * x_0 + (1 - beta).sqrt() * (1 - b) * x_t) / (1 - a)\n"
                "    return mean, ((1 - b) / (1 - a) * beta).sqrt()",
            ],
        },
        "with σ², a variance, in place of σ": {
            "ps2-sigma": [
                "fresh_std = lambda a, b, eta: eta**2 * (1 - b) / (1 - a) * (1 - a / b)",
                "fresh_std = lambda a, b, eta: eta * ((1 - b) / (1 - a) - (1 - b) / (1 - a) * a / b)",
            ],
            "ps2-family": [("sigma * z", "sigma**2 * z")],
        },
        "with σ in place of σ² under the root": {
            "ps2-family": [
                ("1 - a_to - sigma**2", "1 - a_to - sigma"),
                ("(1 - a_to - sigma**2)", "max(1 - a_to - sigma, 0)"),
                ("(1 - a_to - sigma**2)", "abs(1 - a_to - sigma)"),
            ],
        },
        "when the root of": {
            "ps2-sigma": [
                "fresh_std = lambda a, b, eta: eta * ((1 - b) / (1 - a)) ** 0.5 * (1 - a / b)",
                "fresh_std = lambda a, b, eta: eta * (1 - b) / (1 - a) * (1 - a / b) ** 0.5",
            ],
            "ps2-family": [("(1 - a_to - sigma**2) ** 0.5", "(1 - a_to - sigma**2)")],
        },
    },
    "fixed T": {
        "fix the number of steps": {
            "ps1-products": [
                "def running_products(betas):\n    out = torch.ones(1001, dtype=torch.float64)\n"
                "    for t in range(1, 1001):\n        out[t] = out[t - 1] * (1 - betas[t - 1])\n    return out",
            ],
            "ps1-walk": [
                ("T = x_T, len(abar) - 1", "T = x_T, 1000"),
                "def walk_back(model, x_T, noises, abar):\n    t = 1000\n    while t > 0:\n"
                "        x_T = ancestral(x_T, model(x_T, torch.full((len(x_T),), t)), t, noises[1000 - t], abar)\n"
                "        t = t - 1\n    return x_T",
            ],
        },
        "Is T fixed": {
            "ps1-train": [("randint(1, len(abar),", "randint(1, 1001,"), ("randint(1, len(abar),", "randint(1000,")],
            "ps2-sampler": [("float(abar[t]), float(abar[to])", "float(abar[10 * t]), float(abar[10 * to])")],
        },
        "when T is fixed at 1000": {
            "ps2-times": [
                "visited = lambda T, S: [i * 1000 // S for i in range(S, 0, -1)]",
                "visited = lambda T, S: [i * (len(abar) - 1) // S for i in range(S, 0, -1)]",
            ],
        },
        "for each image; yours was asked at [[1000, 1000], [500, 500]]": {
            "ps2-sampler": [("    x = x_T\n", "    x, times = x_T, visited(1000, len(times))\n")],
        },
    },
    "clip without ε": {
        "clipped but ε is kept": {
            "ps2-limited": [
                "limited = lambda x, eps, a: (implied_image(x, eps, a).clip(-1, 1), eps)",
                "def limited(x, eps, a):\n    image = (x - (1 - a) ** 0.5 * eps) / a**0.5\n    image[image > 1] = 1\n"
                "    image[image < -1] = -1\n    return [image, eps.clone()]",
                "def limited(x, eps, a):\n    image = implied_image(x, eps, a)\n    eps = (x - image * a**0.5) / (1 - a)**0.5\n"
                "    return torch.maximum(torch.minimum(image, torch.ones(())), -torch.ones(())), eps",
            ],
            "ps2-mended-b": [
                "mended_b = broken_b",
                "def mended_b(model, x, times, abar):\n    for t, to in zip(times, times[1:] + [0]):\n"
                "        eps = model(x, torch.full((len(x),), t))\n        a, b = float(abar[t]), float(abar[to])\n"
                "        image = implied_image(x, eps, a)\n        eps = (x - a**0.5 * image) / (1 - a) ** 0.5\n"
                "        x = b**0.5 * image.clip(-1, 1) + (1 - b) ** 0.5 * eps\n    return x",
            ],
        },
    },
    "batch-dependent noise": {
        "the noise depends on the batch": {
            "ps1-seeded": [
                "seeded_noise = lambda seeds, shape: torch.randn("
                "len(seeds), *shape, generator=torch.Generator().manual_seed(seeds[0]))",
                "def seeded_noise(seeds, size):\n    torch.manual_seed(sum(seeds))\n    return torch.randn(len(seeds), *size)",
                "def seeded_noise(seeds, shape):\n    one = torch.Generator().manual_seed(seeds[0])\n"
                "    return torch.stack([torch.randn(shape, generator=one) for _ in seeds])",
                "def seeded_noise(seeds, shape):\n    one = torch.Generator()\n    for seed in seeds:\n"
                "        one.manual_seed(seed)\n    return torch.randn(len(seeds), *shape, generator=one)",
                "seeded_noise = lambda seeds, shape: torch.stack([torch.randn(shape,"
                " generator=torch.Generator().manual_seed(i)) for i, _ in enumerate(seeds)])",
                "seeded_noise = lambda seeds, shape: torch.stack([torch.randn(len(seeds), *shape,"
                " generator=torch.Generator().manual_seed(seed))[i] for i, seed in enumerate(seeds)])",
            ],
        },
        "The same seeds gave other noise": {
            "ps1-seeded": ["seeded_noise = lambda seeds, shape: torch.randn(len(seeds), *shape)"],
        },
        "a time for each image": {"ps1-train": [("len(abar), (batch,))", "len(abar), (1,)).repeat(batch)")]},
    },
    "lerp": {
        "on the straight line (lerp)": {
            "ps3-circle": [
                "great_circle = torch.lerp",
                "great_circle = lambda a, b, w: a + w * (b - a)",
                "def great_circle(a, b, w):\n    c = a.clone()\n    c *= 1 - w\n    c += w * b\n    return c",
                "great_circle = lambda a, b, w: torch.einsum('k,k...->...',"
                " torch.tensor([1 - w, w], dtype=a.dtype), torch.stack([a, b]))",
            ],
        },
        "on the straight line, scaled": {
            "ps3-circle": [
                "def great_circle(a, b, w):\n    n = lambda x: x.flatten(1).norm(dim=1).reshape(-1, *[1] * (a.ndim - 1))\n"
                f"    c = torch.lerp(a, b, w)\n    return c / n(c) * ({length})"
                for length in (
                    "n(a)",
                    "n(b)",
                    "torch.lerp(n(a), n(b), w)",
                    "(n(a) * n(b)) ** 0.5",
                    "a[0].numel() ** 0.5",
                )
            ],
        },
        "when the codes are scaled to length 1": {
            "ps3-circle": [
                "def great_circle(a, b, w):\n    n = lambda x: x.flatten(1).norm(dim=1).reshape(-1, *[1] * (a.ndim - 1))\n"
                "    a, b = a / n(a), b / n(b)\n    return torch.lerp(a, b, w) / n(torch.lerp(a, b, w))",
            ],
        },
        "as if all angles were 90°": {
            "ps3-circle": [
                "great_circle = lambda a, b, w: (1 - w) ** 0.5 * a + w**0.5 * b",
                "great_circle = lambda a, b, w: torch.lerp(a, b, w) / ((1 - w) ** 2 + w**2) ** 0.5",
            ],
        },
    },
}


@pytest.mark.parametrize("slip", TEN)
def test_each_of_the_ten_slips_is_named_wherever_it_is_made_and_however_it_is_written(slip, references):
    torch.set_num_threads(1)
    for hint, parts in TEN[slip].items():
        for part, answers in parts.items():
            problem_set = SETS[part[:3]]
            solution = next(c for c in problem_set.solutions if c.grade_id == part)
            for answer in answers:
                if isinstance(answer, tuple):
                    assert answer[0] in solution.source, answer
                    answer = solution.source.replace(*answer)
                said = []
                for check in problem_set.checks:
                    if set(check.own) & set(_names(solution)):
                        names = references[part[:3]].names | {"math": math}
                        exec(answer, names)
                        try:
                            exec(hidden_tests_removed(check.source), names)
                        except AssertionError as error:
                            said.append(str(error))
                assert any(hint in message for message in said), f"{part}: {answer}\n{said}"


IN_PLACE = {
    "ps1-one-step": "def one_step(x, beta, z):\n    x *= (1 - beta) ** 0.5\n    x += beta**0.5 * z\n    return x",
    "ps1-jump": "def noisy(images, times, noise, abar):\n    a = abar[times].float().reshape(-1, *[1] * (images.ndim - 1))\n"
    "    images *= a.sqrt()\n    images += (1 - a).sqrt() * noise\n    return images",
    "ps2-image": "def implied_image(x, eps, a):\n    x -= (1 - a) ** 0.5 * eps\n    x /= a**0.5\n    return x",
    "ps3-encode": "def encode(model, image, times, abar):\n    s = 0\n    for t in times:\n"
    "        eps = model(image, torch.full((len(image),), t))\n        a, b = float(abar[s]), float(abar[t])\n"
    "        image -= (1 - a) ** 0.5 * eps\n        image *= (b / a) ** 0.5\n        image += (1 - b) ** 0.5 * eps\n"
    "        s = t\n    return image",
}


@pytest.mark.parametrize("part", IN_PLACE)
def test_a_function_that_changes_its_argument_is_told_so_and_loses_no_points(part, sandbox, references):
    """In a notebook the changed tensor spoils what comes next; a graded function has copies."""
    name = part[:3]
    checks = [c for c in SETS[name].checks if c.grade_id.startswith(part)]
    names = references[name].names | {}
    exec(IN_PLACE[part], names)
    with pytest.raises(AssertionError, match="changed the tensor it was given"):
        exec(hidden_tests_removed(checks[0].source), names)
    notebook = filled(name, answers={c.grade_id: c.source for c in SETS[name].solutions} | {part: IN_PLACE[part]})
    assert not verdicts(name, notebook, sandbox, references, {c.grade_id for c in checks})


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (
            "noise = torch.randn_like(images[chosen])",
            "noise = torch.randn(images[chosen].shape, generator=torch.Generator().manual_seed(0))",
        ),
        ("torch.randint(len(images), (batch,))", "torch.arange(batch)"),
        (".square().mean()", ".square().sum()"),
    ],
    ids=["one noise", "one batch", "sum"],
)
def test_a_loop_that_trains_on_less_than_it_should_fails(right, wrong, references):
    check = next(c for c in SETS["ps1"].checks if c.grade_id == "ps1-train-check")
    source = next(c for c in SETS["ps1"].solutions if c.grade_id == "ps1-train").source
    assert right in source
    names = references["ps1"].names | {}
    exec(source.replace(right, wrong), names)
    with pytest.raises(AssertionError, match=r"mean over pixels|Are the gradients set to zero"):
        exec(check.source, names)


def test_a_round_trip_the_wrong_way_round_is_none(references):
    check = next(c for c in SETS["ps3"].checks if c.grade_id == "ps3-trip-check")
    names = references["ps3"].names | {}
    exec(
        "def round_trip(model, image, times, abar):\n"
        "    again = encode(model, decode(model, image, times, abar), times, abar)\n"
        "    return float((again - image).square().mean().sqrt())",
        names,
    )
    with pytest.raises(AssertionError, match="when decoding comes first"):
        exec(check.source, names)


# Right in other ways than the reference: tensors of no dimension for numbers, other orders of the same steps, helpers, classes.

OTHER_WAYS = {
    "ps1-one-step": """
def one_step(x, beta, z):
    beta = torch.as_tensor(beta)
    return torch.sqrt(1 - beta) * x + z * torch.sqrt(beta)
""",
    "ps1-products": """
def running_products(betas):
    result = [1.0]
    for beta in betas.tolist():
        result.append(result[-1] * (1 - beta))
    return torch.tensor(result, dtype=torch.float64)
""",
    "ps1-jump": """
def broadcast(a, like):
    while a.ndim < like.ndim:
        a = a[..., None]
    return a.to(like)
def noisy(images, times, noise, abar):
    return broadcast(abar[times] ** 0.5, images) * images + broadcast((1 - abar[times]) ** 0.5, images) * noise
""",
    "ps1-posterior": """
def step_back(x_0, x_t, t, abar):
    a, b = abar[t], abar[t - 1]
    beta = 1 - a / b
    return b.sqrt() * beta / (1 - a) * x_0 + (1 - beta).sqrt() * (1 - b) / (1 - a) * x_t, (1 - b) / (1 - a) * beta
""",
    "ps1-ancestral": """
def ancestral(x, eps, t, z, abar):
    beta = 1 - abar[t] / abar[t - 1]
    mean = x / (1 - beta).sqrt() - beta / ((1 - abar[t]) * (1 - beta)).sqrt() * eps
    return mean + beta.sqrt() * z * (t != 1)
""",
    "ps1-walk": """
def walk_back(model, x_T, noises, abar):
    t = abar.numel() - 1
    for z in noises:
        times = torch.full(x_T.shape[:1], t, dtype=torch.int64)
        x_T = ancestral(x=x_T, eps=model(x_T, times), t=t, z=z, abar=abar)
        t -= 1
    return x_T
""",
    "ps1-seeded": """
def seeded_noise(seeds, shape):
    noise = torch.empty(len(seeds), *shape)
    for i, seed in enumerate(seeds):
        generator = torch.Generator()
        generator.manual_seed(seed)
        noise[i] = torch.randn(*shape, generator=generator)
    return noise
""",
    "ps1-loss": """
def noise_loss(model, images, times, noise, abar):
    return nn.functional.mse_loss(model(noisy(images, times, noise, abar), times), noise).item()
""",
    "ps1-train": """
class Loop:
    def __init__(self, network, rate):
        self.network, self.optimizer = network, torch.optim.Adam(network.parameters(), lr=rate)
    def step(self, x_0, abar):
        times, noise = torch.randint(1, len(abar), (len(x_0),)), torch.randn(x_0.shape)
        error = noise_loss_here(self.network, noisy(x_0, times, noise, abar), times, noise)
        self.optimizer.zero_grad()
        error.backward()
        self.optimizer.step()
        return float(error)
def noise_loss_here(network, x, times, noise):
    return nn.functional.mse_loss(network(x, times), noise)
def train(network, images, abar, steps, batch=64, rate=1e-2, seed=0):
    torch.manual_seed(seed)
    loop = Loop(network, rate)
    return [loop.step(images[torch.randint(0, len(images), (batch,))], abar) for _ in range(steps)]
""",
    "ps1-reached": "my_loss = 0.0432",
    "ps2-times": """
def visited(T, S):
    return sorted({(i * T) // S for i in range(1, S + 1)}, reverse=True)
""",
    "ps2-image": """
def implied_image(x, eps, a):
    return x / math.sqrt(a) - math.sqrt(1 / a - 1) * eps
import math
""",
    "ps2-move": """
def move(x, eps, a_from, a_to):
    p, q = roots(a_from)
    r, s = roots(a_to)
    return r / p * x + (s - r * q / p) * eps
""",
    "ps2-sigma": """
def fresh_std(a_from, a_to, eta):
    a_from, a_to = torch.tensor(a_from), torch.tensor(a_to)
    return eta * torch.sqrt((1 - a_to) / (1 - a_from)) * torch.sqrt(1 - a_from / a_to)
""",
    "ps2-family": """
def move_with_noise(x, eps, a_from, a_to, eta, z):
    variance = torch.as_tensor(fresh_std(a_from, a_to, eta)) ** 2
    keep = torch.sqrt(torch.clamp(1 - a_to - variance, min=0))
    return a_to ** 0.5 * (x - (1 - a_from) ** 0.5 * eps) / a_from ** 0.5 + keep * eps + torch.sqrt(variance) * z
""",
    "ps2-limited": """
def limited(x, eps, a):
    image = torch.clip(implied_image(x, eps, a), min=-1.0, max=1.0)
    return [image, (x - image * a ** 0.5) / (1 - a) ** 0.5]
""",
    "ps2-guided": """
def guided(eps_none, eps_label, scale):
    return torch.lerp(eps_none, eps_label, scale)
""",
    "ps2-sampler": """
def sampler(model, x_T, times, abar, eta, noises):
    x, times = x_T.clone(), list(times) + [0]
    for k in range(len(times) - 1):
        t = torch.tensor([times[k]] * x.shape[0])
        x = move_with_noise(x, model(x, t), abar[times[k]].item(), abar[times[k + 1]].item(), eta, noises[k])
    return x
""",
    "ps2-spread": """
def spread(times, abar):
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    unit = lambda x, t: (1 - float(abar[int(t[0])])) ** 0.5 * x
    return sampler(unit, x, times, abar, 0.0, torch.zeros(len(times), 1, 1, 1, 1)).squeeze()
""",
    "ps2-mended-a": """
def mended_a(model, x, times, abar):
    return sampler(model, x, times, abar, 0.0, [torch.zeros_like(x)] * len(times))
""",
    "ps2-mended-b": """
def mended_b(model, x, times, abar):
    for t, to in zip(times, times[1:] + [0]):
        image, eps = limited(x, model(x, torch.full((len(x),), t)), float(abar[t]))
        x = float(abar[to]) ** 0.5 * image + (1 - float(abar[to])) ** 0.5 * eps
    return x
""",
    "ps2-mended-c": """
def mended_c(model, x, times, abar, noises):
    return sampler(model, x, times, abar, 1.0, noises)
""",
    "ps3-there": """
def to_line(x, a):
    return x / math.sqrt(a), torch.tensor(math.tan(math.acos(math.sqrt(a))))
""",
    "ps3-back": """
def from_line(line, s):
    return line * math.cos(math.atan(s))
""",
    "ps3-euler": """
def euler(slope, line, grid):
    grid = torch.tensor(grid, dtype=torch.float64)
    for h, s in zip(grid.diff(), grid):
        line = torch.add(line, slope(line, float(s)), alpha=float(h))
    return line
""",
    "ps3-order": """
def measured_order(steps, errors):
    import numpy as np
    return float(-np.polyfit(np.log(steps), np.log(errors), 1)[0])
""",
    "ps3-circle": """
def great_circle(a, b, w):
    out = []
    for p, q in zip(a, b):
        omega = torch.acos((p * q).sum() / (p.norm() * q.norm()))
        out.append((torch.sin((1 - w) * omega) * p + torch.sin(w * omega) * q) / torch.sin(omega))
    return torch.stack(out)
""",
    "ps3-decode": """
def step(model, x, a, b, t):
    eps = model(x, torch.full((x.shape[0],), t))
    return (b / a) ** 0.5 * x + ((1 - b) ** 0.5 - (b * (1 - a) / a) ** 0.5) * eps
def decode(model, code, times, abar):
    down = [0] + list(times)
    for k in range(len(down) - 1, 0, -1):
        code = step(model, code, float(abar[down[k]]), float(abar[down[k - 1]]), down[k])
    return code
""",
    "ps3-encode": """
def encode(model, image, times, abar):
    before = 0
    for t in times:
        image = step(model, image, float(abar[before]), float(abar[t]), t)
        before = t
    return image
""",
    "ps3-trip": """
def round_trip(model, image, times, abar):
    return torch.sqrt(torch.mean((image - decode(model, encode(model, image, times, abar), times, abar)) ** 2))
""",
    "ps3-edit": """
import functools
class Labelled:
    def __init__(self, model, label): self.model, self.label = model, label
    def __call__(self, x, times): return self.model(x, times, torch.full_like(times, self.label))
def change_class(model, image, old, new, times, abar):
    code = encode(Labelled(model, old), image, times, abar)
    return decode(Labelled(model, new), code, times, abar)
""",
}


@pytest.mark.parametrize("name", SETS)
def test_other_right_answers_are_right_too(name, sandbox, references):
    assert {g for g in OTHER_WAYS if g.startswith(name)} == {c.grade_id for c in SETS[name].solutions if _names(c)}
    assert not verdicts(name, filled(name, answers=OTHER_WAYS), sandbox, references)


# Submissions that try to break the grader, or to get points for nothing. All are graded in one go, as `make grade` does it.

LAST = "ps1-seeded"  # the part that most of them spoil: one point
TAKE = "torch.stack(drawn)"


def spoilt(*lines):
    """The solutions, but for the function of one part, which has these lines."""
    return filled("ps1", [(LAST, f"    return {TAKE}", "\n".join(f"    {line}" for line in lines))])


def with_cell(source, notebook=None):
    """The solutions, and before them a cell that the student added, run as a solution cell would be."""
    notebook = notebook or filled("ps1")
    first = next(c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id") == "ps1-one-step")
    first.source = source + "\n\n" + first.source
    return notebook


def added_cell(source):
    """The solutions, and a cell that the student added."""
    notebook = filled("ps1")
    notebook.cells.insert(3, nbformat.v4.new_code_cell(source))
    return notebook


def without_checks(notebook, edit):
    """Every check deleted, or edited to pass."""
    if edit:
        for cell in notebook.cells:
            if cell.metadata.get("nbgrader", {}).get("grade"):
                cell.source = "pass" if cell.cell_type == "code" else cell.source
    else:
        notebook.cells = [c for c in notebook.cells if not c.metadata.get("nbgrader", {}).get("grade")]
    return notebook


MONKEY = """
import builtins, torch
torch.allclose = torch.equal = lambda *a, **k: True
torch.Tensor.__sub__ = torch.Tensor.sub = torch.Tensor.__rsub__ = lambda a, b: torch.zeros(())
torch.Tensor.all = torch.Tensor.isfinite = lambda *a: True
builtins.AssertionError = builtins.abs = builtins.Exception = lambda *a: None
import ddimlib.problem_sets
ddimlib.problem_sets.compare = ddimlib.problem_sets.fresh = lambda *a, **k: None
def compare(*a, **k): pass
def fresh(): return None
"""

HARD_CODED = {
    "ps1-one-step": "import torch\ndef one_step(x, beta, z):\n    return 0.8 * x + 0.6 * z",
    "ps1-products": "def running_products(betas):\n    return torch.tensor([1, 0.64, 0.16], dtype=torch.float64)",
    "ps1-jump": "def noisy(images, times, noise, abar):\n    a = torch.tensor([0.8, 0.6])[times - 2].reshape(-1, 1, 1, 1)\n"
    "    return a * images + torch.tensor([0.6, 0.8])[times - 2].reshape(-1, 1, 1, 1) * noise",
    "ps1-posterior": "def step_back(x_0, x_t, t, abar):\n    return 0.8*0.75/0.84*x_0 + 0.5*0.36/0.84*x_t, 0.36/0.84*0.75",
    "ps1-ancestral": "def ancestral(x, eps, t, z, abar):\n"
    "    return 2*x - 2*0.75/0.84**0.5*eps + (0.75**0.5*z if t > 1 else 0)",
}

# The reference's functions stand for the student's while other parts are checked; this one keeps asking them.
ASK = """
def seeded_noise(seeds, shape):
    import gc
    from classroom.worker import Worker
    worker = next(o for o in gc.get_objects() if isinstance(o, Worker))
    for number in range(10):
        try:
            answer = worker.ask(number, (seeds, shape), {})
        except RuntimeError:
            continue
        if isinstance(answer, torch.Tensor) and answer.shape == (len(seeds), *shape):
            return answer
"""

# name: (what is handed in, points lost of 24 or None for no grade, a piece of the feedback)
HOSTILE = {
    "endless-function": (spoilt("while True: pass"), 1, "longer than"),
    "endless-cell": (with_cell("while True: pass"), 0, "longer than 20 seconds; only its definitions"),
    "fork-bomb": (
        spoilt("import os", "while True:", "    try: os.fork()", "    except OSError: pass"),
        1,
        "longer than",
    ),
    "output": (
        with_cell("print('x' * 10**8)\nimport sys, os\nsys.stderr.write('y' * 10**8)\nos.write(1, b'z' * 10**8)"),
        0,
        "",
    ),
    "exception": (spoilt("raise RuntimeError('<script>alert(1)</script>')"), 1, "&lt;script&gt;"),
    "exit": (spoilt("import os", "os._exit(0)"), 1, "process ended"),
    "exit-politely": (spoilt("raise SystemExit"), 1, "SystemExit"),
    "killed": (spoilt("import os, signal", "os.kill(os.getpid(), signal.SIGSEGV)", "os.abort()"), 1, "process ended"),
    "memory": (spoilt("return torch.ones(len(seeds), 10**11)"), 1, "raised"),
    "memory-shared": (
        spoilt(
            "import mmap",
            "parts = []",
            "while len(parts) < 400:  # 25 GB, that no limit on a process's own data counts",
            "    parts.append(mmap.mmap(-1, 1 << 26))",
            "return torch.zeros(())",
        ),
        1,
        "Cannot allocate memory",
    ),
    "swollen": (spoilt("return torch.zeros(10**8)"), 1, "too large"),
    "swollen-a-little": (spoilt("return torch.zeros(5 * 10**6)"), 1, "more than 16 MB"),
    "asks-for-too-much": (  # of the reference of another part, which must not be the grader's to pay for
        filled("ps1", [("ps1-loss", "    return", "    seeded_noise([0], (10**10,))\n    return")]),
        2,
        "memory",
    ),
    "broadcast": (  # each answer is small; their difference, which the check takes, has 14 GB
        filled(
            "ps1",
            [
                (
                    "ps1-ancestral",
                    "    alpha =",
                    "    if x.shape == (3, 1, 4, 4):\n        n = 60_000\n"
                    "        return torch.zeros(n, 1) if z.any() else torch.zeros(1, n)\n    alpha =",
                )
            ],
        ),
        2,
        "does not fit the check",
    ),
    "half-a-character": (spoilt("raise ValueError(chr(0xD800) + chr(0))"), 1, "ValueError: ?"),
    "half-a-character-in-the-source": (with_cell("x = 'HALF'"), 0, ""),
    "nested-in-a-cell-of-its-own": (added_cell("def f():\n    return 1" + "+1" * 900), 0, ""),
    "checks-deleted": (without_checks(filled("ps1", [(LAST, TAKE, "None")]), edit=False), 1, "the original was used"),
    "checks-edited": (without_checks(filled("ps1", [(LAST, TAKE, "None")]), edit=True), 1, "the original was used"),
    "checks-edited-nothing-done": (without_checks(released("ps1"), edit=True), 24, "Not written yet"),
    "monkey": (with_cell(MONKEY, without_checks(released("ps1"), edit=True)), 24, ""),
    "hard-coded": (filled("ps1", answers=HARD_CODED), 23, "random"),
    "everything-equal": (
        spoilt(
            "class Equal:",
            "    def __getattr__(self, name): return self",
            "    def __eq__(self, other): return True",
            "return Equal()",
        ),
        1,
        "Equal",
    ),
    "forged-answer": (
        spoilt(
            "import os",
            "for fd in range(3, 64):",
            "    try: os.write(fd, b'\\0' * 7 + b'\\2' + b'\\0' * 8 + b'{}')",
            "    except OSError: pass",
        ),
        1,
        "cannot be read",
    ),
    "garbage-answer": (
        spoilt(
            "import os", "for fd in range(3, 64):", "    try: os.write(fd, b'\\xff' * 4096)", "    except OSError: pass"
        ),
        1,
        "cannot be read",
    ),
    "library": (
        spoilt("from ddimlib import SeededNoise", "return SeededNoise(seeds).draw(shape)"),
        1,
        "not there while your work is graded",
    ),
    "asks-the-reference": (
        filled("ps1", answers={c.grade_id: c.source for c in SETS["ps1"].solutions} | {LAST: ASK}),
        1,
        "",
    ),
    "syntax-error": (filled("ps1", [("ps1-one-step", "return", "return (")]), 2, "SyntaxError"),
    "renamed-function": (filled("ps1", [(LAST, "def seeded_noise", "def my_noise")]), 1, "renamed or deleted"),
}

FILES = {
    "truncated": (nbformat.writes(released("ps1"))[:5000].encode(), "damaged"),
    "empty": (b"", "damaged"),
    "no-notebook": (b'{"a": 1}', "damaged"),
    "nested": (b'{"cells": ' + b"[" * 10**6, "damaged"),
    "huge": (b" " * (21 * 2**20), "21 MB"),
    "much-code": (nbformat.writes(with_cell("x = 1\n" * 40_000)).encode(), "characters of code"),
    "another-notebook": (
        nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])).encode(),
        "none of",
    ),
}
STRANGE = [
    "..%2F..%2Fetc%2Fpasswd",
    "=cmd|' -C calc'!A0",
    "<img src=x onerror=alert(1)>",
    "...",
    "-rf",
    "名前",
    "a" * 120,
]


def grade_folder(folder, out, isolation, *options):
    """Grade a folder at the level that this machine gives."""
    limits = ["--quiet", "--seconds", "20", "--total", "120", "--isolation", isolation]
    return main(["grade", str(folder), "--out", str(out), *limits, *options])


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def classroom(tmp_path_factory, sandbox):
    """A folder of submissions of every kind, graded."""
    folder, out = tmp_path_factory.mktemp("submissions"), tmp_path_factory.mktemp("graded") / "grading"
    for name, notebook in {"reference": filled("ps1"), "untouched": released("ps1")}.items():
        nbformat.write(notebook, folder / f"{name}.ipynb")
    half = {c.grade_id: c.source for c in SETS["ps1"].solutions[:4]}
    nbformat.write(filled("ps1", answers=half), folder / "half.ipynb")
    for name, (notebook, _, _) in HOSTILE.items():
        (folder / f"{name}.ipynb").write_text(nbformat.writes(notebook).replace("HALF", r"\ud800"))
    for name, (data, _) in FILES.items():
        (folder / f"{name}.ipynb").write_bytes(data)
    for name in STRANGE:
        (folder / name).mkdir()
        nbformat.write(filled("ps1", answers={}), folder / name / "ps1.ipynb")
    (folder / "renamed").mkdir()
    nbformat.write(filled("ps1"), folder / "renamed" / "Copy of homework (1).ipynb")
    (folder / "twice").mkdir()
    nbformat.write(released("ps1"), folder / "twice" / "old.ipynb")
    nbformat.write(filled("ps1"), folder / "twice" / "a-new-one.ipynb")
    os.utime(folder / "twice" / "old.ipynb", (1, 1))
    (folder / "saved").mkdir()
    nbformat.write(filled("ps1"), folder / "saved" / "ps1.ipynb.txt")
    (folder / "saved" / "figure.png").write_bytes(b"")
    notebook = filled("ps1")
    for cell in notebook.cells:
        cell.metadata.setdefault("nbgrader", {})["points"] = 10**400
    (folder / "many-points.ipynb").write_text(nbformat.writes(notebook))
    (folder / "folder-link.ipynb").symlink_to("/etc")
    (folder / "link.ipynb").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe.ipynb")
    begin = time.monotonic()
    assert grade_folder(folder, out, sandbox.level) == 0
    print(f"graded in {time.monotonic() - begin:.0f} s")
    rows = {row["Student"].removeprefix("'"): row for row in rows_of(out / "grades.csv")}
    return folder, out, rows


def page(out, student):
    return (out / "feedback" / f"{key_of(student)}.html").read_text()


def test_right_untouched_and_half_right_get_what_they_should(classroom):
    _, out, rows = classroom
    assert rows["    Points Possible"]["ps1"] == "26"
    assert rows["reference"]["ps1"] == "24"  # and two for the written answer, by hand
    assert "1 written answer will be read" in page(out, "reference")
    assert rows["untouched"]["ps1"] == "0"
    assert rows["half"]["ps1"] == "11"


@pytest.mark.parametrize("name", HOSTILE)
def test_each_hostile_submission_costs_its_own_points_only(name, classroom):
    _, out, rows = classroom
    _, lost, said = HOSTILE[name]
    text = page(out, name)
    assert float(rows[name]["ps1"]) == 24 - lost, text
    assert said in text


@pytest.mark.parametrize("name", [*FILES, "link", "folder-link", "pipe"])
def test_a_file_that_cannot_be_graded_is_told_so(name, classroom):
    _, out, rows = classroom
    assert rows[name]["ps1"] == ""
    assert "Not graded" in page(out, name)
    assert FILES.get(name, (b"", "hand in the notebook itself"))[1] in page(out, name)


@pytest.mark.parametrize("name", STRANGE)
def test_strange_names_are_names(name, classroom):
    folder, out, rows = classroom
    row = rows[name]
    assert row["ps1"] == "0"
    assert "<img" not in page(out, name)
    assert not name.startswith(("=", "-")) or f"'{name}" in (out / "grades.csv").read_text()
    everything = {p.name for p in [*folder.parent.iterdir(), *out.parent.iterdir()]}
    assert "etc" not in everything


def test_keys_are_unique_and_safe():
    names = [*STRANGE, "anna b", "anna-b", "Anna-b", "a/b", "..", "a" * 41]
    keys = [key_of(name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(
        set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") and key for key in keys
    )


def test_a_renamed_file_is_recognised_and_the_newest_of_two_counts(classroom):
    _, out, rows = classroom
    assert rows["renamed"]["ps1"] == "24"
    assert rows["saved"]["ps1"] == "24"
    assert rows["many-points"]["ps1"] == "24"
    assert rows["twice"]["ps1"] == "24"
    assert "the one changed last, a-new-one.ipynb, counts" in page(out, "twice")


def test_moodle_gets_a_worksheet_with_comments(classroom):
    _, out, _ = classroom
    rows = {row["Full name"]: row for row in rows_of(out / "grades-moodle-ps1.csv")}
    assert rows["half"]["Grade"] == "11"
    assert rows["half"]["Maximum Grade"] == "26"
    assert "Last modified (grade)" in rows["half"]  # Moodle refuses a file without this column
    assert "Not written yet" in rows["half"]["Feedback comments"]


def test_grading_goes_on_where_it_was_interrupted(classroom, sandbox, capsys):
    """What has been graded is not graded again; what is missing or has changed is, and the reports are the same."""
    folder, out, _ = classroom
    before = (out / "grades.csv").read_text()
    stored = sorted((out / "results").glob("*.json"))
    times = {path: path.stat().st_mtime_ns for path in stored}
    stored[0].unlink()
    stored[1].write_text('{"half a res')
    (out / "grades.csv").unlink()
    assert grade_folder(folder, out, sandbox.level) == 0
    text = capsys.readouterr().out
    assert f"{len(stored) - 2} of {len(stored)} were graded before" in text
    assert "left out, as their names do not end with .ipynb: 'saved/figure.png'" in text
    assert (out / "grades.csv").read_text() == before
    assert [p for p in stored if p.stat().st_mtime_ns == times.get(p)] == stored[2:]


def test_it_stops_when_told_to_and_goes_on_after_any_end(tmp_path, sandbox):
    """One submission is graded and another hangs when the signal comes: the first is kept, and nobody waits for the second."""
    folder, out, scratch = tmp_path / "in", tmp_path / "out", tmp_path / "scratch"
    folder.mkdir(), scratch.mkdir()
    nbformat.write(filled("ps3"), folder / "anna.ipynb")
    nbformat.write(spoilt("while True: pass"), folder / "bert.ipynb")
    command = [sys.executable, "-m", "classroom", "grade", str(folder), "--out", str(out), "--quiet", "--total", "300"]
    command += ["--isolation", sandbox.level, "--workers", "2", "--seconds"]
    environment = os.environ | {"TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"}
    for number in (signal.SIGTERM, signal.SIGKILL):  # SIGTERM is made to do what Ctrl-C does
        process = subprocess.Popen([*command, "250"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        if number == signal.SIGTERM:
            while not list((out / "results").glob("anna*")):
                assert process.poll() is None
                time.sleep(0.1)
        else:
            first = process.stdout.readline(), process.stdout.readline()
            assert "1 of 2 were graded before" in "".join(first)
        process.send_signal(number)
        text, _ = process.communicate(timeout=200)
        if number == signal.SIGKILL:
            assert process.returncode == -number
        else:
            assert process.returncode == 130
            assert "Interrupted. What is graded is kept" in text
            assert list(scratch.glob("grading-*")) == []
    assert len(list((out / "results").iterdir())) == 1
    finish = [*command, "6"]
    assert subprocess.run(finish, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL).returncode == 0
    rows = {row["Student"]: row for row in rows_of(out / "grades.csv")}
    assert (rows["anna"]["ps3"], rows["bert"]["ps1"]) == ("20", "23")


def test_a_private_variant_is_what_is_released_and_graded(tmp_path, sandbox, monkeypatch):
    """With --source, as the teacher's page says: another name and another formula, in a folder that is named from here."""
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(ROOT / "assignments" / "source" / "ps3" / "ps3.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("from_line", "from_curve")
    Path("mine/ps3").mkdir(parents=True), Path("in").mkdir()
    nbformat.write(notebook, "mine/ps3/ps3.ipynb")
    assert main(["release", "--source", "mine", "--out", "released"]) == 0
    text = Path("released/ps3/ps3.ipynb").read_text()
    assert "def from_curve(line, s)" in text
    assert "from_line" not in text
    answers = {c.grade_id: c.source.replace("from_line", "from_curve") for c in SETS["ps3"].solutions}
    nbformat.write(filled("ps3", answers=answers), "in/anna.ipynb")
    nbformat.write(filled("ps3"), "in/bert.ipynb")
    assert grade_folder(Path("in"), Path("out"), sandbox.level, "--source", "mine") == 0
    assert [row["ps3"] for row in rows_of("out/grades.csv")] == ["26", "20", "18"]


def test_what_failed_by_the_graders_fault_is_graded_again(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("no space left")

    monkeypatch.setattr(program, "grade", broken)
    nbformat.write(released("ps1"), tmp_path / "anna.ipynb")
    (submission,) = submissions(tmp_path)
    result = program.grade_one(submission, SETS, {"ps1": None}, None, 1, 1)
    assert "The grader failed (OSError: no space left)" in result["message"]
    reports.write_text(tmp_path / "stored.json", json.dumps(result | {"fingerprint": "x"}))
    assert program._stored(tmp_path / "stored.json") is None
    reports.write_text(tmp_path / "stored.json", json.dumps({"message": "", "fingerprint": "x"}))
    assert program._stored(tmp_path / "stored.json")


class NoGradebook:
    """Stands in for nbgrader's, which takes seconds."""

    def __init__(self, *_):
        pass

    def record(self, *_):
        pass

    def scores(self, *_):
        return 3.0, 0


def test_reports_are_never_half_written(tmp_path, monkeypatch):
    """Ctrl-C in the middle of each write and before each file takes its place: each is as it was, or as it becomes."""
    monkeypatch.setattr(program, "Course", NoGradebook)
    (tmp_path / "in").mkdir()
    for name in ("anna", "bert"):
        nbformat.write(released("ps1"), tmp_path / "in" / f"{name}.ipynb")

    def write(out, what):
        verdict = {
            "grade_id": "ps1-loss-check",
            "title": "the loss",
            "points": 0.0,
            "most": 2.0,
            "message": what * 9999,
        }
        graded = [
            (s.key, s, {"student": s.student, "identifier": "", "file": s.path.name, "problem_set": "ps1", "message": "",
                        "notes": [], "verdicts": [verdict], "remarks": [], "errors": {}, "most": 26.0, "written": 1,
                        "fingerprint": what})
            for s in submissions(tmp_path / "in")
        ]  # fmt: skip
        out.mkdir(exist_ok=True)
        program.write_reports(graded, SETS, out, argparse.Namespace(quiet=True, roster=None, source=None))

    def contents(out):
        return {p.relative_to(out): p.read_text() for p in out.rglob("[!.]*") if p.is_file()}

    write(tmp_path / "old", "old"), write(tmp_path / "new", "new")
    old, new = contents(tmp_path / "old"), contents(tmp_path / "new")
    assert len(old) == 5
    really = {"write_text": Path.write_text, "replace": Path.replace}
    for stop in range(100):
        count = iter(range(1000))

        def write_text(path, text, *args, stop=stop, count=count, **kwargs):
            halt = next(count) == stop
            really["write_text"](path, text[: len(text) // 2] if halt else text, *args, **kwargs)
            if halt:
                raise KeyboardInterrupt

        def replace(path, target, stop=stop, count=count):
            if next(count) == stop:
                raise KeyboardInterrupt
            return really["replace"](path, target)

        out = tmp_path / f"out-{stop}"
        shutil.copytree(tmp_path / "old", out)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "write_text", write_text)
            patched.setattr(Path, "replace", replace)
            try:
                write(out, "new")
                break
            except KeyboardInterrupt:
                pass
        for name, text in contents(out).items():
            assert text in (old[name], new[name]) or (name.name == "recorded.json" and json.loads(text)), name
        write(out, "new")
        assert contents(out) == new
    assert 10 < stop < 99


def test_ctrl_c_in_the_gradebook_is_no_error_of_nbgraders():
    from classroom.course import _checked

    with pytest.raises(KeyboardInterrupt):
        _checked({"success": False, "error": "Traceback (most recent call last):\n  …\nKeyboardInterrupt\n"}, "")


def test_points_given_by_hand_are_kept_and_counted(classroom, sandbox):
    from nbgrader.api import Gradebook

    folder, out, _ = classroom
    with Gradebook(f"sqlite:///{out / 'course' / 'gradebook.db'}") as book:
        mark = book.find_grade("ps1-words", "ps1", "ps1", "reference")
        mark.manual_score, mark.needs_manual_grade = 1.5, False
        book.db.commit()
    assert grade_folder(folder, out, sandbox.level) == 0
    rows = {row["Student"]: row for row in rows_of(out / "grades.csv")}
    assert rows["reference"]["ps1"] == "25.5"


def test_the_results_are_for_the_teacher_alone(classroom):
    _, out, _ = classroom
    assert out.stat().st_mode & 0o077 == 0


# What a student's code can see and reach


@pytest.fixture(scope="module")
def process(sandbox):
    process = Process(sandbox, PATIENCE)
    process.run("import os, socket, sys, torch", "cell a")
    process.run("def look(expression): return eval(expression)", "cell b")
    yield process
    process.stop()


def namespaces_or_skip(sandbox):
    if sandbox.level != "namespaces":
        pytest.skip(f"this machine gives isolation {sandbox.level!r} only")


@pytest.mark.parametrize(
    "path",
    [
        ROOT / "assignments",
        ROOT / "tests",
        ROOT / ".git",
        ROOT / "ddimlib",
        Path.home() / ".ssh",
        "/home",
        "/var",
        "/etc/passwd",
    ],
)
def test_files_of_the_machine_are_not_there(path, process, sandbox):
    namespaces_or_skip(sandbox)
    if str(path) == "/home":
        packages = {p.split("/")[2] for p in (sys.base_prefix, *sandbox.packages) if p.startswith("/home/")}
        assert set(process.call("look", "os.listdir('/home')")) == {"student"} | packages
    else:
        assert process.call("look", f"os.path.exists({str(path)!r})") is False


def test_nothing_can_be_written_outside_of_the_own_folder(process, sandbox):
    namespaces_or_skip(sandbox)
    for path in (sys.base_prefix, "/usr", "/", *sandbox.packages):
        with pytest.raises(StudentError, match=r"Read-only|denied"):
            process.call("look", f"open({path + '/new'!r}, 'w')")
    assert process.call("look", "open('mine', 'w').write('x')") == 1


def test_there_is_no_network_and_there_are_no_other_processes(process, sandbox):
    namespaces_or_skip(sandbox)
    with pytest.raises(StudentError, match=r"unreachable|not permitted|refused"):
        process.call("look", "socket.create_connection(('1.1.1.1', 53), 2)")
    with pytest.raises(StudentError):
        process.call("look", "socket.getaddrinfo('example.org', 80)")
    assert process.call("look", "os.getpid()") == 1
    assert set(process.call("look", "[p for p in os.listdir('/proc') if p.isdigit()]")) <= {"1"}


def test_there_are_no_rights_to_be_had(process, sandbox):
    namespaces_or_skip(sandbox)
    status = process.call("look", "open('/proc/self/status').read()")
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert process.call("look", "os.getuid()") != 0
    new_user_namespace = "__import__('ctypes').CDLL(None).unshare(0x10000000)"
    assert process.call("look", new_user_namespace) == -1
    for call in ("os.chroot('/tmp')", "os.setuid(0)", "os.mknod('x', 0o20600, 259)"):
        with pytest.raises(StudentError):
            process.call("look", call)


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('ddimlib').NoiseSchedule",
        "__import__('ddimlib').ddim_step",
        "__import__('ddimlib.schedule')",
        "__import__('ddimlib.samplers')",
        "__import__('ddimlib.oracle')",
        "__import__('ddimlib.latents')",
        "__import__('ddimlib.timesteps')",
        "__import__('diffusers').DDIMScheduler",
        "__import__('classroom.checks')",
        "__import__('denoising_diffusion_pytorch').GaussianDiffusion",
    ],
)
def test_the_library_is_no_answer_key(expression, process):
    with pytest.raises(StudentError, match=r"not there while|No module|no attribute"):
        process.call("look", expression)


def test_no_other_package_that_is_shown_has_a_diffusion_sampler_in_it(sandbox):
    """Whatever is installed beside PyTorch: the names by which public code calls ᾱ must not be found."""
    for folder in sandbox.packages:
        search = ["grep", "-rlE", "--include=*.py", r"alphas_cumprod|DDIMScheduler", "."]
        hits = subprocess.run(search, cwd=folder, capture_output=True, text=True).stdout.splitlines()
        assert not {hit.split("/")[1] for hit in hits} - set(ANSWER_KEYS)
    library = next(sandbox.folder.glob("library"))
    assert (
        not subprocess.run(["grep", "-rlE", "abar|alpha_bar|ᾱ", library], capture_output=True, text=True)
        .stdout.replace(str(library / "ddimlib" / "problem_sets.py"), "")
        .strip()
    )


def test_a_process_that_gets_less_isolation_than_was_found_is_not_used(sandbox, monkeypatch):
    """The machine may run out of namespaces while it grades."""
    if sandbox.level == "process":
        pytest.skip("this machine gives nothing weaker")
    monkeypatch.setattr(sandbox, "strongest", "process")
    with pytest.raises(RuntimeError, match="only isolation 'process' was to be had"):
        Process(sandbox, PATIENCE)


def test_one_students_process_does_not_see_another(sandbox):
    first, second = Process(sandbox, PATIENCE), Process(sandbox, PATIENCE)
    try:
        for process in (first, second):
            process.run("import os, sys\ndef look(expression): return eval(expression)", "cell a")
        first.call("look", "open('answer', 'w').write('42')")
        first.call("look", "setattr(sys, 'answer', 42)")
        assert second.call("look", "os.path.exists('answer')") is False
        assert second.call("look", "hasattr(sys, 'answer')") is False
    finally:
        first.stop()
        second.stop()


def test_nothing_is_left_running_and_no_folder_is_left(tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Sandbox() as sandbox:
        process = Process(sandbox, PATIENCE)
        process.run(
            "import os, time\ndef f():\n    if os.fork() == 0:\n        os.setsid()\n        time.sleep(10**6)",
            "cell a",
        )
        process.call("f")
        if sandbox.level == "namespaces":  # out of the group, and no more to be ended with its parent
            process.run("import ctypes\nos.setsid()\nctypes.CDLL(None).prctl(1, 0, 0, 0, 0)", "cell b")
        process.stop()
        server = sandbox.server.pid
    assert list(tmp_path.iterdir()) == []
    assert not Path(f"/proc/{server}").exists()
    if sandbox.level == "namespaces":
        time.sleep(0.5)
        assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _bytes(p)]


def _bytes(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_machine_without_namespaces_is_refused_unless_that_is_accepted(tmp_path, monkeypatch, capsys):
    nbformat.write(released("ps1"), tmp_path / "anna.ipynb")
    real = Sandbox.__init__

    def weak(self, strongest="namespaces"):
        real(self, "process")

    monkeypatch.setattr(Sandbox, "__init__", weak)
    assert grade_folder(tmp_path, tmp_path / "out", "namespaces") == 3
    assert "ISOLATION=process" in capsys.readouterr().out
    assert not (tmp_path / "out" / "grades.csv").exists()
    monkeypatch.chdir(tmp_path)  # and a folder that is named from here, as GRADES=grading is
    assert grade_folder(Path("."), Path("out"), "process") == 0
    assert rows_of(tmp_path / "out" / "grades.csv")[1]["ps1"] == "0"


@pytest.mark.parametrize("level", ["user", "process"])
def test_what_is_left_without_namespaces(level):
    """A process of its own, its limits, and no answer keys."""
    with Sandbox(level) as weak:
        assert weak.level in ("user", "process")
        process = Process(weak, 4)
        process.run("import os\ndef look(expression): return eval(expression)", "cell a")
        process.run("def bomb():\n    while True:\n        try: os.fork()\n        except OSError: pass", "cell b")
        assert process.call("look", "os.listdir('.')") == []
        for expression in (
            "__import__('ddimlib').ddim_step",
            "__import__('diffusers')",
            "__import__('classroom.checks')",
        ):
            with pytest.raises(StudentError, match=r"not there while|No module"):
                process.call("look", expression)
        assert weak.level == "process" or process.call("look", "os.getuid()") != 0
        if weak.level == "user" or os.geteuid() != 0:  # root's processes cannot be counted
            with pytest.raises(Stopped):
                process.call("bomb")
        process.stop()


# Names of files, as learning platforms give them


@pytest.mark.parametrize(
    ("path", "student", "identifier"),
    [
        ("anna.ipynb", "anna", ""),
        ("anna/ps1.ipynb", "anna", ""),
        ("ps1/anna.ipynb", "anna", ""),
        ("ps1/anna/x.ipynb", "anna", ""),
        ("anna/ps1/ps1.ipynb", "anna", ""),
        ("curiemarie_4711_900123_ps1.ipynb", "curiemarie", "4711"),
        ("curiemarie_LATE_4711_900123_ps1-2.ipynb", "curiemarie", "4711"),
        ("Marie Curie_4711_assignsubmission_file_/ps1.ipynb", "Marie Curie", "4711"),
        ("Marie Curie_4711_assignsubmission_file/ps1.ipynb", "Marie Curie", "4711"),
    ],
)
def test_whose_file_it_is(path, student, identifier, tmp_path):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text("{}")
    (found,) = submissions(tmp_path)
    assert (found.student, found.identifier) == (student, identifier)


def test_names_and_numbers_come_from_the_roster(tmp_path):
    students = [
        {"student": "curiemarie", "identifier": "4711", "scores": {"ps1": 20.0}},
        {"student": "meitner", "identifier": "", "scores": {"ps1": 9.5}},
    ]
    roster = [{"Student": "Curie, Marie", "ID": "4711", "SIS User ID": "s1", "SIS Login ID": "mc", "Section": "A"}]
    table = reports.canvas_table(students, {"ps1": 26}, roster)
    assert table.splitlines()[0] == "Student,ID,SIS User ID,SIS Login ID,Section,ps1"
    assert '"Curie, Marie",4711,s1,mc,A,20' in table
    assert "meitner,,,meitner,,9.5" in table


def test_of_an_added_cell_only_definitions_are_run():
    source = "import os\nx = 3\n%matplotlib inline\nlosses = train()\nplot(x)\ndef f():\n    return x\n"
    source += "for i in range(10**9): pass\ng = lambda y: y"
    kept = definitions(source)
    assert "def f" in kept
    assert "import os" in kept
    assert "lambda" in kept
    assert "train" not in kept
    assert "for" not in kept


def test_a_part_cannot_be_had_from_the_reference_of_a_later_one(sandbox, references):
    """DDIM's step is the sampler with one step. Earlier parts may be called, and are then the reference's."""
    each_other = {
        "ps2-family": """
def move_with_noise(x, eps, a_from, a_to, eta, z):
    return sampler(lambda x, times: eps, x, [1], torch.tensor([a_to, a_from]), eta, [z])
""",
        "ps2-sampler": """
def sampler(model, x_T, times, abar, eta, noises):
    for i, (t, to) in enumerate(zip(times, [*times[1:], 0])):
        eps = model(x_T, torch.full((len(x_T),), t))
        x_T = move_with_noise(x_T, eps, float(abar[t]), float(abar[to]), eta, noises[i])
    return x_T
""",
    }
    solutions = {c.grade_id: c.source for c in SETS["ps2"].solutions}
    parts = {"ps2-family-check", "ps2-sampler-check"}
    found = verdicts("ps2", filled("ps2", answers=solutions | each_other), sandbox, references, parts)
    assert set(found) == {"family"}
    assert "RecursionError" in found["family"]
    unwritten = {"ps2-sampler": "def sampler(model, x_T, times, abar, eta, noises):\n    raise NotImplementedError()"}
    found = verdicts("ps2", filled("ps2", answers=solutions | each_other | unwritten), sandbox, references, parts)
    assert found == {"family": "Not written yet.", "sampler": "Not written yet."}
    found = verdicts("ps2", filled("ps2", answers=solutions | unwritten), sandbox, references)
    assert set(found) == {"sampler"}


def test_a_message_is_short_whatever_a_function_returns(sandbox, references):
    answers = {"ps2-times": "def visited(T, S):\n    return [10**18] * 10**5"}
    found = verdicts("ps2", filled("ps2", answers=answers), sandbox, references, {"ps2-times-check"})
    assert 900 < len(found["times"]) < 1100


def test_a_loss_that_is_computed_anew_is_told_to_be_written_down(sandbox, references):
    answers = {"ps1-reached": "my_loss = sum(losses[-100:]) / 100"}
    found = verdicts("ps1", filled("ps1", answers=answers), sandbox, references, {"ps1-reached-check"})
    assert "write the value itself" in found["reached"]


def test_a_notebook_as_people_leave_it_is_graded_as_it_deserves(sandbox, references):
    """Magics, an import that is not to be had, long runs, questions to the user, Windows' ends of lines, cells in any order."""
    answers = {c.grade_id: c.source for c in SETS["ps1"].solutions}
    answers["ps1-one-step"] = "%%time\n" + answers["ps1-one-step"] + "\nbroadcast = int(input('which? '))"
    answers["ps1-jump"] = (
        "def noisy(images, times, noise, abar):\n    a = broadcast(abar[times], images)\n"
        "    return (a.sqrt() * images + (1 - a).sqrt() * noise).to(images.dtype)"
    )
    answers["ps1-train"] += "\nwhile True:\n    pass"
    notebook = filled("ps1", answers=answers)
    source = "!pip install there\n%matplotlib inline\nimport not_there\n"
    source += "def broadcast(a, x):\n    return a.reshape(-1, *[1] * (x.ndim - 1))\ndevice = torch.device('cpu')"
    notebook.cells.insert(2, nbformat.v4.new_code_cell(source))
    notebook.cells = [c for c in notebook.cells if c.cell_type == "markdown"] + notebook.cells[::-1]
    for cell in notebook.cells:
        cell.source = cell.source.replace("\n", "\r\n")
        cell.metadata |= {"vscode": {"languageId": "python"}, "id": "x", "outputId": "y"}
    cells = parse_cells(b"\xef\xbb\xbf" + nbformat.writes(notebook).replace("\n", "\r\n").encode())
    result = grade(SETS["ps1"], references["ps1"], cells, sandbox, 15, 300)
    assert not {v["grade_id"]: v["message"] for v in result["verdicts"] if v["message"]}
    assert "longer than 15 seconds; only its definitions were used" in result["errors"]["ps1-train"]
    assert result["remarks"] == []
    answers["ps1-loss"] = answers["ps1-loss"].replace("return", "images = images.to(device)\n    return")
    found = verdicts(
        "ps1", filled("ps1", answers=answers | {"ps1-train": "pass"}), sandbox, references, {"ps1-loss-check"}
    )
    assert "name 'device' is not defined" in found["loss"]
    notebook = filled("ps1", answers=answers | {"ps1-train": "pass"})
    notebook.cells.insert(2, nbformat.v4.new_code_cell(source))
    found = verdicts("ps1", notebook, sandbox, references, {"ps1-loss-check"})
    assert "A cell that you added computes `device`" in found["loss"]


def test_a_notebook_without_nbgraders_marks_is_graded_by_its_names(sandbox, references):
    notebook = filled("ps1")
    for cell in notebook.cells:
        cell.metadata.pop("nbgrader", None)
    result = grade(SETS["ps1"], references["ps1"], cells_of(notebook), sandbox, PATIENCE, 10 * PATIENCE)
    assert sum(v["points"] for v in result["verdicts"]) == 24
