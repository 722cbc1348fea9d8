"""Tables measured on a trained network, with their provenance: quality against steps and η."""

import textwrap
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddimlib.acceleration import accelerate
from ddimlib.arguments import check_int
from ddimlib.denoisers import VelocityDenoiser
from ddimlib.metrics import InceptionDistance, Judge
from ddimlib.provenance import check_settings, model_settings
from ddimlib.samplers import Eta, ddim_sigma, sample
from ddimlib.schedule import NoiseSchedule
from ddimlib.storage import check_output, locked, read_json, write_json
from ddimlib.timesteps import Spacing, timesteps

RESULTS = Path(__file__).parent / "results"


def load_results(name: str) -> dict[str, Any]:
    """A table that is shipped with the library, such as "mnist-steps": what :func:`evaluate` returned when it was made."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        shipped = ", ".join(sorted(p.stem for p in RESULTS.glob("*.json")))
        raise ValueError(f"no results {name!r}; shipped are: {shipped}")
    return read_json(path)


def evaluation_labels(n: int, num_classes: int) -> Tensor:
    """Labels 0, 1, …, num_classes - 1, 0, 1, …: every class equally often, int64 [n]."""
    return torch.arange(n, device="cpu") % num_classes


def evaluate(
    model: VelocityDenoiser,
    schedule: NoiseSchedule,
    judge: Judge,
    steps: Sequence[int],
    etas: Sequence[Eta],
    n: int,
    out: Path,
    facts: dict[str, Any],
    spacing: Spacing = "linspace",
    guidance: float = 1.0,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = True,
    inception: InceptionDistance | None = None,
    bf16: bool = False,
    compile: bool = False,
) -> dict[str, Any]:
    """Sample n images for every pair (S, η), from the same starting noise, and judge them.

    The table is written after every row. A table that is already at `out` is continued when it was made with the same
    network and settings, so an interrupted run loses one row at most.

    Args:
        model: a network with labels; they are asked for in turn, see :func:`evaluation_labels`.
        schedule, judge: the network's schedule; the judge of its data.
        steps, etas: the rows are their product.
        n: images a row, at least 2.
        out: the JSON file.
        facts: provenance; joins the list under "provenance", which has one entry for each command that made rows.
        spacing, guidance, seed, batch_size, progress: see :func:`ddimlib.sample`.
        inception: measures FID, too.
        bf16, compile: see :func:`ddimlib.accelerate`, which on a GPU captures a CUDA graph, too. The judge stays in float32.

    Returns:
        The table: "settings", "judge", "provenance", and "rows" of steps, eta, accuracy (in [0, 1]; None for a network without
        classes), frechet, fid (with `inception`), seconds.

    Raises:
        ValueError: before the first image, when an argument is out of range, the judge knows other classes than the network, or
            `out` belongs to another network, judge or settings; OSError, when it cannot be written.
    """
    n, batch_size = check_int("n", n, 2, 10**7), check_int("batch_size", batch_size, 1)
    if not (steps and etas):
        raise ValueError(
            f"a table needs one row or more, got steps = {steps} and etas = {etas}; name at least one of each"
        )
    for S, eta in product(steps, etas):
        ddim_sigma(schedule, timesteps(schedule.T, S, spacing)[0], 0, eta)
    theirs = judge.facts.get("num_classes", model.num_classes)
    if model.num_classes is not None and theirs != model.num_classes:
        known = f"the judge knows {theirs} classes, the network {model.num_classes}"
        raise ValueError(f"{known}; take the judge of its data")
    channels = judge.facts.get("channels", model.image_shape[0])
    if channels != model.image_shape[0]:
        known = f"the judge takes images of {channels} channels, the network draws {model.image_shape[0]}"
        raise ValueError(f"{known}; take the judge of its data")
    settings = model_settings(model, schedule) | {
        "samples": n, "spacing": spacing, "guidance": guidance, "seed": seed, "judge": judge.digest(),
    }  # fmt: skip
    settings |= {"bf16": True} if bf16 else {}
    settings |= inception.settings if inception else {}
    table = open_table(out, settings, facts, judge=judge.facts)
    labels = None if model.num_classes is None else evaluation_labels(n, model.num_classes)
    network = accelerate(model, bf16=bf16, compile=compile)
    for S, eta in missing_rows(table, steps=steps, eta=etas):
        begin = time.perf_counter()
        images = sample(
            network, schedule, (n, *model.image_shape), S, eta, spacing, seed,
            labels=labels, guidance=guidance, batch_size=batch_size, progress=progress,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        row = {
            "steps": S,
            "eta": eta,
            "accuracy": None if labels is None else round(judge.accuracy(images, labels), 4),
            "frechet": round(judge.frechet_distance(images), 4),
            **({"fid": round(inception(images), 3)} if inception else {}),
            "seconds": round(seconds, 1),
        }
        add_row(out, table, row, ("steps", "eta"))
    return table


def print_provenance(table: dict[str, Any]) -> None:
    """Print the commands that made a table, in lines of a page's width, and where and when each was run."""
    for facts in table["provenance"]:
        lines = textwrap.wrap(facts["command"], 79, break_long_words=False, break_on_hyphens=False)
        print("command  " + "\n         ".join(lines))
        print(f"device   {facts['device']}, torch {facts['torch']}, {facts['date']}")


# --- tables that grow row by row -------------------------------------------------------------------------------------


def open_table(out: Path, settings: dict[str, Any], facts: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The table at `out`, or an empty one, with `facts` joining its provenance: what a command goes on with.

    Raises:
        ValueError: when the file there is no table, or one that was made with other settings.
        OSError: when the file cannot be written.
    """
    check_output(out)
    table = {"settings": settings, **more, "provenance": [facts], "rows": []}
    _merge(out, table)
    return table


def read_table(path: str | Path) -> dict[str, Any]:
    """The table in a file.

    Raises:
        ValueError: when the file holds anything else.
        FileNotFoundError: when there is none.
    """
    table = read_json(path)
    lists = [table.get("rows"), table.get("provenance")]
    if not all(isinstance(x, list) and all(isinstance(entry, dict) for entry in x) for x in lists):
        raise ValueError(f"{path} holds no table: it lacks rows or provenance; give another file")
    return table


def missing_rows(table: dict[str, Any], **wanted: Sequence[Any]) -> list[tuple[Any, ...]]:
    """All combinations of the values of the named columns that are not among the rows, each once."""
    done = {tuple(row.get(name) for name in wanted) for row in table["rows"]}
    return [values for values in dict.fromkeys(product(*wanted.values())) if values not in done]


def add_row(out: Path, table: dict[str, Any], row: dict[str, Any], names: Sequence[str]) -> None:
    """Add a row to the table and to its file, together with the rows that other commands have added there meanwhile."""
    with locked(out):
        _merge(out, table)
        if not any(all(other.get(name) == row[name] for name in names) for other in table["rows"]):
            table["rows"].append(row)
        write_json(out, table)


def _merge(out: Path, table: dict[str, Any]) -> None:
    """Take over what the file at `out` holds."""
    if not out.exists():
        return
    found = read_table(out)
    check_settings(out, found.get("settings"), table["settings"])
    table["provenance"] = [f for f in found["provenance"] if f not in table["provenance"]] + table["provenance"]
    table["rows"] = found["rows"]
