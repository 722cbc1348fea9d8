"""What is shipped: the networks, their cards, their judges, and the tables measured with them."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest
import race
import torch
from weights import average_models

from ddimlib import bundled_sample, load_pretrained, sample
from ddimlib.data import DATA_LICENCES, PRETRAINED, bundled_samples
from ddimlib.evaluation import RESULTS, evaluation_labels, load_results
from ddimlib.metrics import Judge
from ddimlib.pretrained import available, build_model, load_model, save_model, training_runs
from ddimlib.provenance import weights_digest
from ddimlib.schedule import NoiseSchedule
from ddimlib.storage import read_tensors

ROOT = Path(__file__).resolve().parent.parent


def test_three_networks_are_shipped():
    assert available() == ["cifar10", "fashion", "mnist"]


@pytest.mark.parametrize("name", available())
def test_a_network_is_small_and_its_card_says_how_it_was_made(name):
    assert (PRETRAINED / f"{name}.safetensors").stat().st_size <= (14e6 if name == "cifar10" else 4e6)
    card = json.loads((PRETRAINED / f"{name}.json").read_text())
    assert {"data", "data_licence", "licence", "parameters", "quality"} <= card.keys()
    for made in (card, *training_runs(card)):
        assert {"command", "ddimlib", "torch", "device", "date"} <= made["trained"].keys()
    assert all({"steps", "batch_size", "loss", "final_loss", "ema"} <= run.keys() for run in training_runs(card))
    model, schedule = load_pretrained(name)
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    assert card["quality"]["settings"]["weights"] == weights_digest(model)
    assert schedule.T == 1000
    assert not model.training


@pytest.mark.parametrize("name", ["fashion", "mnist"])
def test_make_weights_trains_as_the_card_says(name, tmp_path):
    card = json.loads((PRETRAINED / f"{name}.json").read_text())
    told = [run["trained"]["command"] for run in training_runs(card)]
    command = ["make", "--dry-run", f"weights-{name}", f"RUNS={tmp_path}", "DATA=data", "TRAIN=--bf16"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    printed = printed.replace("\\\n", "").replace(str(tmp_path), "runs").replace("--root data", "")
    made = [line for line in printed.splitlines() if "ddimlib train" in line]
    words = [[set(shlex.split(line.split("ddimlib ", 1)[1])) for line in lines] for lines in (told, made)]
    assert words[0] == words[1]


SPEED = "benchmark-"


@pytest.mark.parametrize("path", sorted(RESULTS.glob(f"{SPEED}*.json")), ids=lambda path: path.stem)
def test_a_table_of_speed_belongs_to_a_network_of_the_shipped_ones_size(path):
    """Training it anew changes the weights and not the speed."""
    model, _ = load_pretrained("mnist")
    assert load_results(path.stem)["settings"]["parameters"] == sum(p.numel() for p in model.parameters())


# "-last" is of the last step's weights, which are not shipped: see chapter 11
QUALITY = sorted(
    p for p in RESULTS.glob("*.json") if not p.stem.startswith((SPEED, "trace-")) and not p.stem.endswith("-last")
)


@pytest.mark.parametrize("path", QUALITY, ids=lambda path: path.stem)
def test_a_table_belongs_to_the_network_that_is_shipped(path):
    table = load_results(path.stem)
    model, _ = load_pretrained(path.stem.split("-")[0])
    assert table["settings"]["weights"] == weights_digest(model)
    if not path.stem.endswith("-reconstruction"):  # nobody judges a round trip: it is compared with its image
        assert table["judge"] == Judge.load(path.stem.split("-")[0]).facts


# 60 images cannot tell 95 % from 99 %; they do tell a network from a broken one (chance: 10 %).
@pytest.mark.parametrize(("name", "at_least"), [("mnist", 0.85), ("fashion", 0.7)])
def test_images_are_recognised_as_what_was_asked_for(name, at_least):
    model, schedule = load_pretrained(name)
    labels = evaluation_labels(60, 10)
    images = sample(model, schedule, (60, 1, 28, 28), steps=10, seed=1, labels=labels)
    assert Judge.load(name).accuracy(images, labels) >= at_least


@pytest.mark.parametrize(("name", "at_least"), [("mnist", {10: 0.96, 50: 0.98}), ("fashion", {10: 0.85, 50: 0.85})])
def test_the_measured_quality_is_not_given_up_unnoticed(name, at_least):
    quality = json.loads((PRETRAINED / f"{name}.json").read_text())["quality"]
    assert quality["settings"] | {"samples": 5000, "guidance": 1.0} == quality["settings"]
    rows = {row["steps"]: row for row in quality["rows"] if row["eta"] == 0}
    for steps, accuracy in at_least.items():
        assert rows[steps]["accuracy"] >= accuracy
    assert rows[50]["frechet"] < rows[10]["frechet"]


def test_the_race_in_the_card_is_that_of_the_tool():
    card = json.loads((PRETRAINED / "cifar10.json").read_text())
    rows = {row["name"]: row for row in card["race"]["rows"]}
    assert list(rows) == list(race.ENTRIES)
    assert rows["the recipe"]["parameters"] == card["parameters"]
    for name, (network, training) in race.ENTRIES.items():
        told = json.loads(json.dumps([network, training]))
        assert [rows[name]["network"], rows[name]["training"]] == told
        assert rows[name]["seconds"] == pytest.approx(60 * card["race"]["settings"]["minutes"], rel=0.05)


def test_both_networks_have_one_architecture():
    mnist, fashion = (read_tensors(PRETRAINED / f"{name}.safetensors")[1]["network"] for name in ("mnist", "fashion"))
    assert mnist == fashion


def test_the_colour_network_draws_what_it_is_asked_for():
    """1,000 images a row: the standard error of an accuracy is 1.3 points."""
    table = json.loads((PRETRAINED / "cifar10.json").read_text())["quality"]
    rows = {row["steps"]: row for row in table["rows"] if row["eta"] == 0}
    assert table["judge"]["test_accuracy"] >= 0.94
    assert table["settings"]["samples"] >= 1000
    assert rows[20]["accuracy"] >= 0.7
    assert rows[20]["frechet"] < rows[10]["frechet"]


def test_shoes_point_the_way_they_do_in_the_data():
    """A network that is trained on mirrored images draws them mirrored, which no loss and no grid gives away."""
    model, schedule = load_pretrained("fashion")
    labels = torch.tensor([5, 7, 9]).repeat(10)  # sandals, sneakers and boots
    images = sample(model, schedule, (30, 1, 28, 28), steps=10, seed=1, labels=labels)
    assert Judge.load("fashion").accuracy(images, labels) >= 0.8


@pytest.mark.parametrize("name", bundled_samples())
def test_bundled_images_are_shipped_with_their_licence(name):
    (entry,) = [
        e for e in (PRETRAINED / "LICENCES.md").read_text().split("\n- ") if e.startswith(f"`{name}-sample.npz`")
    ]
    assert DATA_LICENCES[name] in entry


def test_a_judge_recognises_real_images():
    for name, at_least in (("mnist", 0.97), ("fashion", 0.85)):
        assert Judge.load(name).accuracy(*bundled_sample(name)) >= at_least


def test_a_saved_model_comes_back_the_same(tmp_path):
    torch.manual_seed(0)
    network = {"widths": (8, 8), "blocks": (1, 1), "attention": (False, True), "image_size": 8, "num_classes": 3}
    schedule = NoiseSchedule.cosine(30)
    model = build_model(network, schedule)
    save_model(tmp_path / "model.safetensors", model, schedule, network)
    again, same_schedule = load_model(tmp_path / "model.safetensors")
    assert weights_digest(again) == weights_digest(model)
    assert torch.equal(same_schedule.alpha_bar, schedule.alpha_bar)
    assert again.image_shape == (1, 8, 8)


def save_models(folder, networks, schedules):
    paths = []
    for i, (network, schedule) in enumerate(zip(networks, schedules, strict=True)):
        torch.manual_seed(i)
        paths.append(folder / f"{i}.safetensors")
        save_model(paths[-1], build_model(network, schedule), schedule, network, half=True)
    return paths


NETWORK = {"widths": (8, 8), "blocks": (1, 1), "attention": (False, False), "image_size": 8}


def test_an_average_of_models_has_their_mean_weights_and_their_schedule(tmp_path):
    paths = save_models(tmp_path, [NETWORK] * 3, [NoiseSchedule.cosine(30)] * 3)
    average_models(paths, tmp_path / "mean.safetensors")
    mean, schedule = load_model(tmp_path / "mean.safetensors")
    assert torch.equal(schedule.alpha_bar, NoiseSchedule.cosine(30).alpha_bar)
    models = [load_model(path)[0] for path in paths]
    for ours, *theirs in zip(mean.parameters(), *(model.parameters() for model in models), strict=True):
        assert torch.equal(ours, torch.stack(theirs).double().mean(0).half().float())


@pytest.mark.parametrize(
    ("networks", "schedules", "named"),
    [
        ([NETWORK], [NoiseSchedule.linear(30)], "at least two models, got 1"),
        ([NETWORK, NETWORK | {"widths": (8, 16)}], [NoiseSchedule.linear(30)] * 2, "1.safetensors has another network"),
        (
            [NETWORK] * 2,
            [NoiseSchedule.linear(30), NoiseSchedule.cosine(30)],
            "1.safetensors has another network or sch",
        ),
    ],
)
def test_models_of_different_kinds_have_no_average(networks, schedules, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        average_models(save_models(tmp_path, networks, schedules), tmp_path / "mean.safetensors")
    assert not (tmp_path / "mean.safetensors").exists()


def test_training_runs_names_each_run_once():
    first, last = {"steps": 1}, {"steps": 4}
    branches = [{"steps": steps, "started_from": first} for steps in (2, 3)]
    average = {"averaged_from": branches}
    assert training_runs(first) == [first]
    assert training_runs(average) == [first, *branches]
    assert training_runs(last | {"started_from": average}) == [first, *branches, last | {"started_from": average}]


def test_weights_can_be_stored_in_half_the_space(tmp_path):
    torch.manual_seed(0)
    network = {"widths": (64, 64), "blocks": (1, 1), "attention": (False, False), "image_size": 8}
    schedule = NoiseSchedule.linear(30)
    model = build_model(network, schedule)
    save_model(tmp_path / "whole.safetensors", model, schedule, network)
    save_model(tmp_path / "half.safetensors", model, schedule, network, half=True)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.6 * sizes[1]
    again, same_schedule = load_model(tmp_path / "half.safetensors")
    assert torch.equal(same_schedule.alpha_bar, schedule.alpha_bar)
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert theirs.dtype == torch.float32
        assert torch.equal(theirs, ours.half().float())


def test_a_network_that_can_be_made_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr("ddimlib.pretrained.available", lambda: ["mnist"])
    with pytest.raises(ValueError, match="'cifar10'; shipped are: mnist; `ddimlib train cifar10` makes it"):
        load_pretrained("cifar10")


def test_an_unknown_name_and_a_foreign_file_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"no pretrained network 'imagenet'; shipped are: .*fashion, mnist"):
        load_pretrained("imagenet")
    with pytest.raises(ValueError, match="no results 'imagenet'"):
        load_results("imagenet")
    with pytest.raises(ValueError, match="holds no model"):
        load_model(PRETRAINED / "mnist-classifier.safetensors")


@pytest.mark.parametrize("path", sorted(PRETRAINED.glob("*.safetensors")), ids=lambda path: path.stem)
def test_damage_to_a_shipped_file_is_found(path, tmp_path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    (tmp_path / path.name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        read_tensors(tmp_path / path.name)
