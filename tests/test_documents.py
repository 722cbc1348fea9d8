"""What README and intro show is what happens: their code runs, their pictures are what their commands draw."""

import re
import shlex
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from ddimlib.__main__ import main, parse

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "index.md"]


def blocks(language):
    """Every fenced block of a language, as (document:number, text)."""
    found = []
    for document in DOCUMENTS:
        texts = re.findall(rf"```{language}\n(.*?)```", document.read_text(), flags=re.S)
        found += [pytest.param(text, id=f"{document.name}:{i}") for i, text in enumerate(texts)]
    return found


@pytest.mark.parametrize("code", blocks("python"))
def test_the_code_runs(code):
    exec(compile(code, "document", "exec"), {})
    plt.close("all")


def commands():
    lines = [line for block in blocks("sh") for line in block.values[0].replace("\\\n", "").splitlines()]
    return sorted({line.removeprefix("python -m ") for line in lines if re.match(r"(python -m )?ddimlib ", line)})


@pytest.mark.parametrize("line", commands())
def test_the_commands_are_ones_that_the_program_accepts(line):
    assert parse(shlex.split(line, comments=True)[1:])


# Image i depends on (seed, i) alone, so the first few stand for all ten; 1000 steps of them take seconds.
@pytest.mark.parametrize(("name", "first"), [("ddim-20.png", 8), ("ddpm-1000.png", 2)])
def test_the_pictures_are_what_their_commands_draw(name, first, tmp_path):
    (line,) = [line for line in commands() if name in line]
    options = shlex.split(line)[1:]
    options[options.index("--n") + 1] = str(first)
    options[options.index("--out") + 1] = str(tmp_path / name)
    assert main([*options, "--quiet"]) == 0
    drawn = np.asarray(Image.open(tmp_path / name).convert("L"), dtype=float) / 255
    stored = np.asarray(Image.open(ROOT / "book" / "_static" / name).convert("L"), dtype=float) / 255
    cell = 90  # 28 pixels and a margin of 2, three times as large
    drawn, stored = drawn[:cell, : first * cell], stored[:cell, : first * cell]
    assert np.sqrt(np.mean((drawn - stored) ** 2)) < 0.02
