"""`make weights NETWORKS=cifar10`, from training to tables, with a tiny network."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import write_colour_images

from ddimlib.distributed import load_samples
from ddimlib.metrics import Judge
from ddimlib.pretrained import load_model
from ddimlib.provenance import weights_digest

ROOT = Path(__file__).resolve().parent.parent
SPACED = [f"{spacing}{end}" for spacing in ("leading", "trailing", "quadratic") for end in ("", "-seed-1")]
TABLES = {"quality": 2, "quality-seed-1": 2, "steps": 6, "eta": 10, "eta-seed-1": 4, "reconstruction": 4, "last": 2}
TABLES |= (
    {"small-eta-seed-1": 4, "float32": 2} | dict.fromkeys(SPACED, 2) | {f"guidance-{w}": 1 for w in ("1.5", "2", "3")}
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A copy of the package into which `make weights` has put a network of 2 training steps; and that command."""
    folder = tmp_path_factory.mktemp("made")
    write_colour_images(folder / "data" / "cifar10", classes="abcdefghij", per_class=2)
    shutil.copytree(ROOT / "ddimlib", folder / "ddimlib", ignore=shutil.ignore_patterns("__pycache__", "*cifar10*"))
    sizes = ["EPOCHS=40", "N=4", "STEPS_N=4", "ETA_N=4", "BATCH=4", "IMAGES=2", "QUALITY=2 10", "STEPS=2 10 20"]
    sizes += ["ETA_STEPS=2 10", "RECONSTRUCTION_STEPS=10 20", "FEW_STEPS=2 10"]
    sizes += ["GUIDANCE_STEPS=2", "GRID_STEPS=2", "EVAL=--quiet"]
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
        spacing = kind.removesuffix("-seed-1") if kind in SPACED else "linspace"
        assert table["settings"]["spacing"] == ("quadratic" if kind == "reconstruction" else spacing)
        assert table["settings"].get("seed", 0) == kind.endswith("seed-1")
        guidance = kind.removeprefix("guidance-") if "guidance" in kind else 1
        assert table["settings"].get("guidance", 1) == float(guidance)
        assert len(table["rows"]) == rows
        if kind != "reconstruction":
            assert table["judge"] == judge.facts
    images, labels = load_samples(shipped / "results" / "cifar10-grid")
    assert (images.shape, labels.tolist()) == ((80, 3, 32, 32), 8 * list(range(10)))
    # a second time, nothing is made again; a table that was cut off is finished
    (runs / "steps.json").rename(runs / "steps.part.json")
    again = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    assert "ddimlib train" not in again
    assert "ddimlib sample" not in again
    assert again.count("ddimlib evaluate") == 1
