"""Chapter 11 and the commands behind it, on a tiny stand-in for the CIFAR-10 network: `make weights`, then the notebook."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import test_notebooks as notebooks
from helpers import write_colour_images

from ddimlib.distributed import load_samples
from ddimlib.metrics import Judge
from ddimlib.pretrained import load_model
from ddimlib.provenance import weights_digest

ROOT = Path(__file__).resolve().parent.parent
CHAPTER = ROOT / "book" / "11-colour.ipynb"
TABLES = {"quality": 2, "steps": 3, "eta": 10, "reconstruction": 4, "last": 1, "leading": 2, "quadratic": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A copy of the package into which `make weights` has put a network of 2 training steps; and that command."""
    folder = tmp_path_factory.mktemp("made")
    write_colour_images(folder / "data" / "cifar10", classes="abcdefghij", per_class=2)
    shutil.copytree(ROOT / "ddimlib", folder / "ddimlib", ignore=shutil.ignore_patterns("__pycache__", "*cifar10*"))
    sizes = ["EPOCHS=40", "N=4", "STEPS_N=4", "ETA_N=4", "BATCH=4", "IMAGES=2", "QUALITY=2", "STEPS=2 10 20"]
    sizes += ["ETA_STEPS=2 10", "RECONSTRUCTION_STEPS=10 20", "SPACING_STEPS=2 10", "GRID_STEPS=2", "EVAL=--quiet"]
    sizes += ["""TRAIN=--steps 2 --batch-size 8 --widths 8 16 16 --blocks 1 1 1"""]
    places = ["DATA=data", "RUNS=runs", "SHIPPED=ddimlib", f"BIN={Path(sys.executable).parent}", "STAMP="]
    command = ["make", "--file", str(ROOT / "Makefile"), "weights", "NETWORKS=cifar10", *sizes, *places]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder, command


def test_weights_are_made_from_training_to_tables_by_one_command(made):
    folder, command = made
    shipped, runs = folder / "ddimlib", folder / "runs" / "cifar10"
    model, _ = load_model(shipped / "pretrained" / "cifar10.safetensors")
    last, _ = load_model(runs / "last.safetensors")
    assert model.image_shape == (3, 32, 32)
    judge = Judge.load(str(shipped / "pretrained" / "cifar10-classifier.safetensors"))
    card = json.loads((shipped / "pretrained" / "cifar10.json").read_text())
    assert (card["steps"], card["stored_as"], judge.facts["stored_as"]) == (2, "float16", "float16")
    assert card["quality"]["settings"]["weights"] == weights_digest(model) != weights_digest(last)
    for kind, rows in TABLES.items():
        table = json.loads((shipped / "results" / f"cifar10-{kind}.json").read_text())
        assert table["settings"]["weights"] == weights_digest(last if kind == "last" else model)
        assert table["settings"]["spacing"] == {"leading": kind}.get(
            kind, "quadratic" if kind in ("quadratic", "reconstruction") else "linspace"
        )
        assert len(table["rows"]) == rows
        if kind != "reconstruction":
            assert table["judge"] == judge.facts
    for kind, network in {"grid-model": model, "grid-last": last}.items():
        images, labels = load_samples(shipped / "results" / f"cifar10-{kind}")
        manifest = json.loads((shipped / "results" / f"cifar10-{kind}" / "manifest.json").read_text())
        assert (images.shape, labels.tolist()) == ((80, 3, 32, 32), 8 * list(range(10)))
        assert manifest["settings"]["weights"] == weights_digest(network)
    # a second time, nothing is made again; a table that was cut off is finished
    (runs / "steps.json").rename(runs / "steps.part.json")
    again = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    assert "ddimlib train" not in again
    assert "ddimlib sample" not in again
    assert again.count("ddimlib evaluate") == 1


def test_the_chapter_runs_and_keeps_the_rules_of_every_chapter(made, monkeypatch):
    folder, _ = made
    path = folder / "book" / CHAPTER.name
    path.parent.mkdir()
    shutil.copy(CHAPTER, path)
    environment = os.environ | {"PYTHONPATH": str(folder), "TQDM_DISABLE": "1"}
    subprocess.run([sys.executable, ROOT / "tools" / "run_notebooks.py", path], env=environment, check=True)
    executed = nbformat.read(path, as_version=4)
    assert any(notebooks.has_picture(output) for cell in executed.cells for output in cell.get("outputs", []))
    for rule in (
        notebooks.test_every_code_cell_was_run_in_order_and_without_error,
        notebooks.test_size_and_kernel,
        notebooks.test_outputs_are_the_same_on_every_machine,
        notebooks.test_every_picture_has_alternative_text,
        notebooks.test_titles_of_admonitions_are_not_lost,
        notebooks.test_skeleton_of_a_chapter,
        notebooks.test_every_exercise_has_a_folded_solution,
        notebooks.test_every_solution_has_code_that_was_run,
    ):
        rule(path)
