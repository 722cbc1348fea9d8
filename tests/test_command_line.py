"""The command line: what it writes, what it says when something is wrong, and that it can be interrupted."""

import json
import os
import signal
import struct
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import write_colour_images
from PIL import Image
from weights import main as tables
from weights import reconstruct

from ddimlib import __version__, evaluation, training
from ddimlib.__main__ import main, parse
from ddimlib.evaluation import evaluate, evaluation_labels
from ddimlib.metrics import Classifier, InceptionDistance, Judge
from ddimlib.pretrained import build_model, load_model, save_model
from ddimlib.provenance import weights_digest
from ddimlib.samplers import ddim_step
from ddimlib.schedule import NoiseSchedule
from ddimlib.storage import read_tensors
from ddimlib.timesteps import timesteps

TINY = {"widths": (8, 8, 8), "blocks": (1, 1, 1), "num_classes": 10}


@pytest.fixture
def tiny_model(tmp_path):
    """A small random network, saved as a user would save one."""
    torch.manual_seed(0)
    schedule = NoiseSchedule.linear()
    model = build_model(TINY, schedule)
    path = tmp_path / "tiny.safetensors"
    save_model(path, model, schedule, TINY)
    return path


@pytest.fixture
def mnist_root(tmp_path):
    """300 random images in the files that torchvision's MNIST reads, so that nothing is downloaded."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for part in ("train", "t10k"):
        images = generator.integers(0, 256, (300, 28, 28), dtype=np.uint8)
        labels = generator.integers(0, 10, 300, dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, 300, 28, 28) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 300) + labels.tobytes())
    return tmp_path / "data"


def picture(path):
    return np.asarray(Image.open(path).convert("L"))


def sampling(model, out, *options):
    """Arguments of a small, quiet `sample`; of an option given twice, the last counts."""
    return ["sample", "--model", str(model), "--steps", "2", "--n", "2", "--quiet", "--out", str(out), *options]


def test_sample_writes_a_picture_of_the_size_asked_for(tiny_model, tmp_path, capsys):
    out = tmp_path / "grid.png"
    assert main(sampling(tiny_model, out, "--n", "6", "--columns", "3", "--scale", "2")) == 0
    assert picture(out).shape == (2 * (2 * 30 + 2), 2 * (3 * 30 + 2))
    assert str(out) in capsys.readouterr().out
    assert list(tmp_path.glob(".*")) == []  # no temporary file stays behind


def test_the_seed_and_the_label_decide_the_picture(tmp_path):
    def draw(*options):
        out = tmp_path / "grid.png"
        assert main(sampling("mnist", out, *options)) == 0
        return picture(out)

    base = draw("--seed", "1", "--labels", "0")
    assert (draw("--seed", "1", "--labels", "0") == base).all()
    assert (draw("--seed", "2", "--labels", "0") != base).any()
    assert (draw("--seed", "1", "--labels", "1") != base).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--steps", "1001"], "got 1001"),
        (["--eta", "1.5"], "got 1.5"),
        (["--labels", "3", "10"], "0..9"),
        (["--guidance", "2"], "needs labels"),
        (["--model", "imagenet"], "no model 'imagenet'"),
        (["--model", "missing.safetensors"], "no file missing.safetensors"),
        (["--clip", "-1"], "clip must be a finite number above 0, got -1.0"),
    ],
)
def test_a_bad_option_is_one_clear_line_and_leaves_no_file(tiny_model, tmp_path, capsys, options, message):
    out = tmp_path / "grid.png"
    assert main(sampling(tiny_model, out, *options)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error
    assert not out.exists()


def test_help_shows_a_first_command_and_every_default():
    def help_of(*command):
        run = subprocess.run(
            [sys.executable, "-m", "ddimlib", *command, "--help"], capture_output=True, text=True, check=True
        )
        return " ".join(run.stdout.replace("│", " ").split())  # lines are broken to the width of the terminal

    assert "ddimlib sample --model mnist --steps 20 --n 64 --out grid.png" in help_of()
    assert "(default: 50)" in help_of("sample")


def test_the_version_is_said(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"ddimlib {__version__}\n"


def test_training_runs_to_its_end_and_its_model_can_be_sampled(mnist_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(training.RECIPES, "mnist", training.Recipe(TINY, training.TrainingConfig(steps=3)))
    out = tmp_path / "run"
    arguments = ["train", "mnist", "--root", str(mnist_root), "--out", str(out), "--batch-size", "8", "--quiet"]
    assert main(arguments) == 0
    card = json.loads((out / "model.json").read_text())
    assert card["steps"] == 3
    assert card["data_licence"] == "CC BY-SA 3.0"
    assert card["trained"]["command"].startswith("python -m ddimlib")
    trained, _ = load_model(out / "model.safetensors")

    before = weights_digest(trained)
    assert main(arguments) == 0  # a finished run, started again, changes nothing
    assert weights_digest(load_model(out / "model.safetensors")[0]) == before
    assert (
        main(
            [
                "sample",
                "--model",
                str(out / "model.safetensors"),
                "--steps",
                "1",
                "--n",
                "1",
                "--quiet",
                "--out",
                str(tmp_path / "a.png"),
            ]
        )
        == 0
    )

    assert main([*arguments, "--learning-rate", "0.5"]) == 2
    assert "learning_rate = 0.002, not 0.5" in capsys.readouterr().err


def test_a_folder_of_images_trains_a_network_of_their_shape(tmp_path):
    write_colour_images(tmp_path / "things", size=16)
    out = tmp_path / "run"
    arguments = ["train", str(tmp_path / "things"), "--recipe", "mnist", "--widths", "8", "8", "8"]
    assert main([*arguments, "--out", str(out), "--steps", "1", "--batch-size", "8", "--quiet"]) == 0
    model, _ = load_model(out / "model.safetensors")
    assert (model.image_shape, model.num_classes) == ((3, 16, 16), 2)
    assert json.loads((out / "model.json").read_text())["data"] == str(tmp_path / "things")


def test_training_in_minutes_says_that_it_is_unfinished_and_continues(mnist_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(training.RECIPES, "mnist", training.Recipe(TINY, training.TrainingConfig(steps=2)))
    out = tmp_path / "run"
    arguments = ["train", "mnist", "--root", str(mnist_root), "--out", str(out), "--batch-size", "8", "--quiet"]
    assert main([*arguments, "--minutes", "0"]) == 3
    message = capsys.readouterr().err
    assert message.startswith("unfinished: 1 of 2 steps")
    assert "the same command again" in message
    assert not (out / "model.safetensors").exists()
    assert main([*arguments, "--minutes", "10"]) == 0
    assert json.loads((out / "model.json").read_text())["steps"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "imagenet"], "no data set 'imagenet'"),
        (["judge", "imagenet"], "no data set 'imagenet'"),
        (["sample", "--model", "cifar10"], "ddimlib train cifar10"),
        (["evaluate", "--model", "mnist", "--judge", "cifar10"], "ddimlib judge cifar10"),
    ],
)
def test_what_is_not_there_is_named_with_the_way_to_get_it(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ddimlib.pretrained.available", lambda: ["mnist"])
    monkeypatch.setattr("ddimlib.metrics.PRETRAINED", tmp_path)
    assert main([*arguments, "--quiet"]) == 2
    assert message in capsys.readouterr().err


def test_models_can_be_averaged(tiny_model, tmp_path):
    paths = []
    for i in range(2):
        paths.append(tmp_path / f"model{i}.safetensors")
        paths[-1].write_bytes(tiny_model.read_bytes())
        paths[-1].with_suffix(".json").write_text(json.dumps({"data": "mnist", "steps": i}))
    assert tables(["average", *map(str, paths), "--out", str(tmp_path / "mean")]) == 0
    assert weights_digest(load_model(tmp_path / "mean" / "model.safetensors")[0]) == weights_digest(
        load_model(tiny_model)[0]
    )
    card = json.loads((tmp_path / "mean" / "model.json").read_text())
    assert card["data"] == "mnist"
    assert [part["steps"] for part in card["averaged_from"]] == [0, 1]
    assert card["trained"]["command"]


def test_tables_are_stored_in_a_card(tmp_path):
    card, quality, race = (tmp_path / f"{name}.json" for name in ("card", "quality", "race"))
    card.write_text('{"data": "mnist", "quality": "old"}')
    first, second = ({"provenance": [], "rows": [{"steps": n}]} for n in (1, 2))
    quality.write_text(json.dumps(first))
    race.write_text(json.dumps(second))
    assert tables(["card", str(card), "--quality", str(quality)]) == 0
    assert tables(["card", str(card), "--race", str(race)]) == 0
    assert json.loads(card.read_text()) == {"data": "mnist", "quality": first, "race": second}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["card.json"], "give --quality or --race"),
        (["missing.json", "--race", "table.json"], "no file missing.json"),
        (["card.json", "--race", "missing.json"], "no file missing.json"),
        (["card.json", "--quality", "card.json"], "card.json holds no table"),
        (["card.json", "--quality", "begun.json"], "begun.json has no row yet"),
        (["list.json", "--quality", "table.json"], "list.json must hold a JSON object"),
        (["card.json", "--quality", "list.json"], "list.json must hold a JSON object"),
    ],
)
def test_a_card_takes_tables_only(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "card": '{"data": "mnist"}', "list": "[1]",
        "begun": '{"provenance": [], "rows": []}', "table": '{"provenance": [], "rows": [{}]}',
    }.items():  # fmt: skip
        (tmp_path / f"{name}.json").write_text(text)
    assert tables(["card", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "card.json").read_text() == '{"data": "mnist"}'
    assert not (tmp_path / "missing.json").exists()


def test_training_can_start_from_the_weights_of_a_model(mnist_root, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(training.RECIPES, "mnist", training.Recipe(TINY, training.TrainingConfig(steps=1)))
    out, first = tmp_path / "run", tmp_path / "first.safetensors"
    first.write_bytes(tiny_model.read_bytes())
    first.with_suffix(".json").write_text('{"steps": 7}')
    arguments = ["train", "mnist", "--root", str(mnist_root), "--out", str(out), "--batch-size", "8", "--quiet"]
    assert main([*arguments, "--start-from", str(first), "--learning-rate", "0"]) == 0
    assert weights_digest(load_model(out / "model.safetensors")[0]) == weights_digest(load_model(tiny_model)[0])
    assert json.loads((out / "model.json").read_text())["started_from"] == {"model": str(first), "steps": 7}


SMALL = ["--widths", "8", "8", "8", "--blocks", "1", "1", "1", "--batch-size", "8", "--quiet"]


def test_a_model_trained_further_keeps_its_weights_and_its_grey_and_gets_the_classes_of_the_data(tiny_model, tmp_path):
    write_colour_images(tmp_path / "things", size=28)
    arguments = ["train", str(tmp_path / "things"), "--start-from", str(tiny_model), "--out", str(tmp_path / "run")]
    assert main([*arguments, "--steps", "1", "--batch-size", "8", "--learning-rate", "0", "--quiet"]) == 0
    model, before = load_model(tmp_path / "run")[0], load_model(tiny_model)[0]
    assert (model.image_shape, model.num_classes) == ((1, 28, 28), 2)
    theirs = before.state_dict()
    same = [torch.equal(value, theirs[name]) for name, value in model.state_dict().items() if "label" not in name]
    assert len(same) > 20
    assert all(same)


def test_pictures_without_classes_are_trained_on_with_the_schedule_asked_for_and_extended(tmp_path):
    for i in range(9):
        path = tmp_path / "flat" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (16, 16), 20 * i).save(path)
    arguments = ["train", str(tmp_path / "flat"), "--schedule", "cosine", "--out", str(tmp_path / "run"), *SMALL]
    assert main([*arguments, "--steps", "2"]) == 0
    model, schedule = load_model(tmp_path / "run")
    assert (model.image_shape, model.num_classes) == ((1, 16, 16), None)
    assert schedule.same_as(NoiseSchedule.cosine())
    assert main([*arguments, "--steps", "4"]) == 2
    assert main([*arguments, "--steps", "4", "--extend"]) == 0
    assert json.loads((tmp_path / "run" / "model.json").read_text())["steps"] == 4
    assert main(sampling(tmp_path / "run", tmp_path / "a.png")) == 0  # a run's folder stands for its model


def test_the_length_of_a_run_is_chosen_to_fit_and_kept(tmp_path, capsys):
    write_colour_images(tmp_path / "things", size=8)
    out = tmp_path / "run"
    arguments = ["train", str(tmp_path / "things"), "--fit-minutes", "0.5", "--out", str(out), *SMALL]
    assert main([*arguments, "--minutes", "0"]) == 3
    steps = read_tensors(out / "checkpoint.safetensors")[1]["settings"]["config"]["steps"]
    assert f"{steps} steps fit into 0.5 minutes" in capsys.readouterr().out
    assert main([*arguments, "--minutes", "0"]) == 3
    assert f"unfinished: 2 of {steps} steps" in capsys.readouterr().err


def test_a_film_shows_how_the_images_form(tmp_path):
    for name, kind in (("a.gif", []), ("b.webp", ["--kind", "film"])):
        assert main(sampling("mnist", tmp_path / name, "--steps", "3", *kind)) == 0
        film = Image.open(tmp_path / name)
        assert film.n_frames in (3, 4)  # the noise and one for each step; WebP joins two that look the same
        assert film.size == (3 * (2 * 30 + 2), 3 * 32)


def test_pictures_of_their_own_and_other_formats(tiny_model, tmp_path):
    assert main(sampling(tiny_model, tmp_path / "all", "--kind", "pictures", "--scale", "2")) == 0
    assert [path.name for path in sorted((tmp_path / "all").iterdir())] == ["00000.png", "00001.png"]
    assert picture(tmp_path / "all" / "00000.png").shape == (56, 56)
    assert main(sampling(tiny_model, tmp_path / "a.jpg")) == 0
    assert Image.open(tmp_path / "a.jpg").format == "JPEG"


def test_interpolation_and_inversion_draw_their_rows(tiny_model, tmp_path, capsys):
    common = ["--model", str(tiny_model), "--steps", "2", "--scale", "1", "--quiet"]
    assert main(["interpolate", *common, "--n", "5", "--label", "3", "--out", str(tmp_path / "a.png")]) == 0
    assert picture(tmp_path / "a.png").shape == (32, 5 * 30 + 2)
    assert main(["invert", *common, "--data", "mnist", "--n", "3", "--out", str(tmp_path / "b.png")]) == 0
    assert picture(tmp_path / "b.png").shape == (3 * 30 + 2, 3 * 30 + 2)
    assert "mean square error" in capsys.readouterr().out


def test_what_begins_again_does_not_promise_to_continue(tiny_model, tmp_path, monkeypatch, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ddimlib.__main__.sample", interrupted)
    monkeypatch.setattr("ddimlib.distributed.sample", interrupted)
    assert main(sampling(tiny_model, tmp_path / "a.png")) == 130
    assert "nothing is kept" in capsys.readouterr().err
    assert main(sampling(tiny_model, tmp_path / "folder")) == 130
    assert "continues where this one stopped" in capsys.readouterr().err


def test_an_ascii_terminal_shows_what_it_can(tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    command = [sys.executable, "-m", "ddimlib", "sample", "--model", "nirgends-ᾱ"]
    run = subprocess.run(command, capture_output=True, env=environment, cwd=tmp_path)
    assert run.returncode == 2
    assert run.stderr.startswith(b"error: no model")


def test_ctrl_c_that_torch_turns_into_another_error_is_an_interruption(monkeypatch, capsys):
    """It does, in the middle of reading a file: "could not determine the shape of object type …"."""

    def load(*args):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise OSError(5, "could not determine the shape")

    monkeypatch.setattr("ddimlib.__main__.load", load)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        assert main(["sample", "--n", "1"]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.strip() == "interrupted; nothing is kept"


def test_interrupted_training_says_how_to_go_on(mnist_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(training.RECIPES, "mnist", training.Recipe(TINY, training.TrainingConfig(steps=5)))
    step = training.Trainer.train_step

    def interrupted(trainer):
        if trainer.step == 2:
            raise KeyboardInterrupt
        return step(trainer)

    arguments = [
        "train",
        "mnist",
        "--root",
        str(mnist_root),
        "--out",
        str(tmp_path / "run"),
        "--batch-size",
        "8",
        "--quiet",
    ]
    monkeypatch.setattr(training.Trainer, "train_step", interrupted)
    assert main(arguments) == 130
    assert "continues where this one stopped" in capsys.readouterr().err
    monkeypatch.setattr(training.Trainer, "train_step", step)
    assert main(arguments) == 0
    assert json.loads((tmp_path / "run" / "model.json").read_text())["steps"] == 5


@pytest.fixture
def judge():
    torch.manual_seed(0)
    judge = Judge(Classifier(), facts={"floor": 0.0})
    judge.observe_real(torch.rand(50, 1, 28, 28) * 2 - 1)
    return judge


def evaluate_tiny(path, judge, out, **options):
    model, schedule = load_model(path)
    arguments = {"steps": [1, 2], "etas": [0.0, 1.0], "n": 20, "facts": {"command": "test"}} | options
    return evaluate(model, schedule, judge, out=out, progress=False, **arguments)


def test_evaluate_writes_one_row_for_each_pair_and_its_provenance(tiny_model, judge, tmp_path):
    out = tmp_path / "table.json"
    table = evaluate_tiny(tiny_model, judge, out)
    assert json.loads(out.read_text()) == table
    assert [(row["steps"], row["eta"]) for row in table["rows"]] == [(1, 0.0), (1, 1.0), (2, 0.0), (2, 1.0)]
    assert table["provenance"] == [{"command": "test"}]
    assert table["settings"]["weights"] == weights_digest(load_model(tiny_model)[0])


def test_an_interrupted_evaluation_repeats_no_row(tiny_model, judge, tmp_path, monkeypatch):
    out = tmp_path / "table.json"
    whole = evaluate_tiny(tiny_model, judge, tmp_path / "whole.json")
    evaluate_tiny(tiny_model, judge, out, steps=[1])
    drawn = []
    sample = evaluation.sample
    monkeypatch.setattr(
        evaluation, "sample", lambda *args, **options: drawn.append(args[3]) or sample(*args, **options)
    )
    table = evaluate_tiny(tiny_model, judge, out)
    assert drawn == [2, 2]

    def measured(rows):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]

    assert measured(table["rows"]) == measured(whole["rows"])


def test_a_continued_table_keeps_the_provenance_of_all_its_rows(tiny_model, judge, tmp_path):
    out = tmp_path / "table.json"
    evaluate_tiny(tiny_model, judge, out, steps=[1], facts={"device": "a laptop"})
    evaluate_tiny(tiny_model, judge, out, steps=[2], etas=[0.0], facts={"device": "a server"})
    evaluate_tiny(tiny_model, judge, out, facts={"device": "a server"})
    table = json.loads(out.read_text())
    assert table["provenance"] == [{"device": "a laptop"}, {"device": "a server"}]
    assert len(table["rows"]) == 4


def test_fid_and_precision_are_in_the_table_when_asked_for(tiny_model, judge, tmp_path, monkeypatch):
    class Stub(torch.nn.Module):
        num_features = 3

        def forward(self, images):
            assert not torch.is_autocast_enabled("cpu")
            return images.float().mean((2, 3))

    seen = []

    def spied(network, *arguments, **options):
        seen.append((network.bf16, network.compiled))
        return images

    torch.manual_seed(0)
    images = torch.rand(20, 1, 28, 28)
    monkeypatch.setattr(evaluation, "sample", spied)
    inception = InceptionDistance(torch.zeros(30, 1, 28, 28, dtype=torch.uint8), network=Stub())
    one = {"steps": [1], "etas": [0.0]}
    plain = evaluate_tiny(tiny_model, judge, tmp_path / "plain.json", **one)
    table = evaluate_tiny(
        tiny_model, judge, tmp_path / "table.json", inception=inception, bf16=True, compile=True, **one
    )
    assert seen == [(False, False), (True, True)]
    assert table["settings"] == plain["settings"] | {"bf16": True, **inception.settings}
    assert inception.settings["fid_real_images"] == 30
    assert "fid" not in plain["rows"][0]
    assert table["rows"][0]["fid"] == pytest.approx(inception(images), abs=1e-3)
    assert table["rows"][0]["frechet"] == plain["rows"][0]["frechet"]  # the judge stays in float32


def test_a_table_of_other_settings_is_not_overwritten(tiny_model, judge, tmp_path):
    out = tmp_path / "table.json"
    evaluate_tiny(tiny_model, judge, out, steps=[1], etas=[0.0])
    before = out.read_bytes()
    with pytest.raises(ValueError, match="choose another output"):
        evaluate_tiny(tiny_model, judge, out, n=30)
    assert out.read_bytes() == before


def reconstruct_tiny(path, out, n=6, **options):
    model, schedule = load_model(path)
    images = torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    arguments = {"steps": [2, 5], "iterations": [0, 4], "facts": {"command": "test"}} | options
    return reconstruct(model, schedule, images, evaluation_labels(n, 10), out=out, progress=False, **arguments)


def test_the_round_trip_is_measured_as_in_the_paper(tiny_model, tmp_path):
    """Mean square error of a pixel in [0, 1], against a round trip that is written out here."""
    row = reconstruct_tiny(tiny_model, tmp_path / "table.json", steps=[5], iterations=[0])["rows"][0]
    model, schedule = load_model(tiny_model)
    images = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x, times = images, [0, *timesteps(1000, 5, "quadratic")[::-1]]
    labels = evaluation_labels(6, 10)
    with torch.no_grad():
        for s, t in pairwise(times):
            x = ddim_step(schedule, x, model(x, torch.full((6,), t), labels), s, t)
        norm = x.flatten(1).norm(dim=1).mean()
        for t, s in pairwise(times[::-1]):
            x = ddim_step(schedule, x, model(x, torch.full((6,), t), labels), t, s)
    assert row["mse"] == pytest.approx(((x + 1) / 2 - (images + 1) / 2).square().mean().item(), rel=0.01)
    assert row["norm"] == pytest.approx(norm.item(), abs=0.01)
    assert row["residual"] is None


def test_iterations_shrink_the_error_and_report_a_residual(tiny_model, tmp_path):
    explicit, implicit = reconstruct_tiny(tiny_model, tmp_path / "table.json", steps=[5])["rows"]
    assert implicit["iterations"] == 4
    assert implicit["mse"] < explicit["mse"]
    assert implicit["residual"] > 0


class ScaledByLabel(torch.nn.Module):
    """ε = label / 10 · sin(x): no noise at all for label 0."""

    num_classes = 10

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.1))

    def forward(self, x, t, labels):
        return self.scale * labels[:, None, None, None] * x.sin()


def test_each_image_is_encoded_with_its_own_label(tmp_path):
    """With label 0 there is nothing to get wrong, with label 9 there is; the batches are of 2 and of 1."""
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    error = {}
    for name, labels in {"easy": [0, 0, 0], "last one hard": [0, 0, 9], "hard": [9, 9, 9]}.items():
        out, schedule = tmp_path / f"{name}.json", NoiseSchedule.linear()
        table = reconstruct(
            ScaledByLabel(), schedule, images, torch.tensor(labels), [5], [0], out, {}, batch_size=2, progress=False
        )
        error[name] = table["rows"][0]["mse"]
    assert error["easy"] < 1e-10
    assert 1e-4 < error["last one hard"] < error["hard"]


def test_an_interrupted_reconstruction_is_continued_and_the_batch_does_not_matter(tiny_model, tmp_path):
    out = tmp_path / "table.json"
    whole = reconstruct_tiny(tiny_model, tmp_path / "whole.json", batch_size=4)
    first = reconstruct_tiny(tiny_model, out, steps=[2])
    table = reconstruct_tiny(tiny_model, out)
    assert table["rows"][:2] == first["rows"]
    assert json.loads(out.read_text()) == table
    for row, other in zip(table["rows"], whole["rows"], strict=True):
        assert [row[k] for k in ("steps", "iterations")] == [other[k] for k in ("steps", "iterations")]
        assert row["mse"] == pytest.approx(other["mse"], rel=0.02)
        assert row["norm"] == pytest.approx(other["norm"], abs=0.02)


def test_a_reconstruction_of_other_images_is_not_overwritten(tiny_model, tmp_path):
    out = tmp_path / "table.json"
    reconstruct_tiny(tiny_model, out, steps=[2])
    with pytest.raises(ValueError, match="choose another output"):
        reconstruct_tiny(tiny_model, out, n=7, steps=[2])


def test_reconstruct_prints_its_table(tiny_model, tmp_path, capsys):
    out = tmp_path / "table.json"
    command = ["reconstruct", "--model", str(tiny_model), "--data", "mnist", "--steps", "2", "--iterations", "0", "1"]
    assert tables([*command, "--n", "3", "--out", str(out)]) == 0
    assert len(json.loads(out.read_text())["rows"]) == 2
    assert "mean square" in capsys.readouterr().out


def test_reconstruct_asks_for_no_more_images_than_there_are(tiny_model, tmp_path, capsys):
    out = tmp_path / "table.json"
    for n in ("0", "201"):
        assert tables(["reconstruct", "--model", str(tiny_model), "--data", "mnist", "--n", n, "--out", str(out)]) == 2
        assert f"must lie in 1..200, the number of images at hand, got {n}" in capsys.readouterr().err
    assert tables(["reconstruct", "--model", str(tiny_model), "--out", str(out)]) == 2  # whose images?
    assert "use one of mnist, fashion, cifar10, or a folder" in capsys.readouterr().err
    assert not out.exists()


def test_labels_come_equally_often():
    assert evaluation_labels(30, 10).bincount().tolist() == [3] * 10


def test_a_model_is_no_judge(tiny_model):
    with pytest.raises(ValueError, match="holds no judge"):
        Judge.load(str(tiny_model))


def test_importing_the_command_line_leaves_the_gpu_alone():
    """Once CUDA has been asked, processes that are forked later cannot use it."""
    code = "import torch; torch.cuda.is_available = lambda: 1 / 0; import ddimlib.__main__"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("", None),
        ("--bf16", True),
        ("--no-bf16", False),
        ("--bf16 True", True),
        ("--bf16 False", False),
        ("--bf16=False", False),
    ],
)
def test_bf16_of_train_has_three_states_and_may_stand_alone(words, asked):
    assert parse(["train", "mnist", *words.split(), "--quiet"]).bf16 is asked
