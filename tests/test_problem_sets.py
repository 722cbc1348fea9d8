"""The problem sets: right answers of any style, usual slips with their hints, and notebooks as people leave them."""

import math
import re

import nbformat
import pytest
import torch
from students import PATIENCE, SETS, cells_of, filled, released, verdicts

from classroom.checks import grade
from classroom.course import RELEASED, release
from classroom.notebooks import defined_names, definitions, hidden_tests_removed, parse_cells


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
        own = {c.grade_id for c in SETS[name].checks if set(c.own) & set(defined_names(part.source))}
        assert set(found) == {g.removeprefix(f"{name}-").removesuffix("-check") for g in own}
        assert all("ZeroDivisionError: mine (cell" in message and "line" in message for message in found.values()), (
            found
        )


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
        if set(c.own)
        & set(defined_names(next(s.source for s in SETS[name].solutions if s.grade_id == f"{name}-{part}")))
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
                    if set(check.own) & set(defined_names(solution.source)):
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
    assert {g for g in OTHER_WAYS if g.startswith(name)} == {
        c.grade_id for c in SETS[name].solutions if defined_names(c.source)
    }
    assert not verdicts(name, filled(name, answers=OTHER_WAYS), sandbox, references)


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
    result = grade(SETS["ps1"], references["ps1"], cells, sandbox, 8, 300)
    assert not {v["grade_id"]: v["message"] for v in result["verdicts"] if v["message"]}
    assert "longer than 8 seconds; only its definitions were used" in result["errors"]["ps1-train"]
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
