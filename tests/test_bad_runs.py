"""Whole kinds of bad input thrown at what trains, stores, evaluates and shares out: each a clear error before any work."""

import math
import re
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import randn, short_schedule
from torch import nn

from ddimlib import load_model, save_model
from ddimlib.__main__ import main
from ddimlib.arguments import KindError
from ddimlib.data import load_dataset, to_bytes, to_model_range, with_channels
from ddimlib.distributed import SamplingConfig, load_samples, sample_shards
from ddimlib.evaluation import evaluate, open_table
from ddimlib.metrics import Classifier, Judge, train_classifier
from ddimlib.plotting import picture_format, save_animation, save_images
from ddimlib.pretrained import build_model
from ddimlib.schedule import NoiseSchedule
from ddimlib.storage import check_output, read_json, read_tensors, write_json, write_tensors
from ddimlib.training import Trainer, TrainingConfig

SCHEDULE = short_schedule()
NETWORK = {"widths": (8, 8), "blocks": (1, 1), "attention": (False, False), "image_size": 8, "num_classes": 3}
NAN, INF = math.nan, math.inf


def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(NETWORK, SCHEDULE)


def images(n=12):
    return torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def labels(n=12):
    return torch.arange(n) % 3


@pytest.fixture(autouse=True)
def no_work(monkeypatch):
    """Nothing in this file may train, sample or judge: what is refused is refused before."""

    def worked(*args, **options):
        pytest.fail("it began to work")

    monkeypatch.setattr("ddimlib.unet.UNet.forward", worked)


# --- numbers of a configuration --------------------------------------------------------------------------------------

TRAINING = [
    *[("steps", value) for value in (0, -5, 2.5, NAN, INF, "7", None, True)],
    *[("batch_size", value) for value in (0, -1, 1.5, NAN, "8", None)],
    *[("learning_rate", value) for value in (-1e-3, NAN, INF, "fast", None)],
    *[("warmup", value) for value in (-1, 0.5, NAN, None)],
    *[("decay", value) for value in (-0.1, 1.1, NAN, None)],
    *[("ema", value) for value in (-0.1, 1.0, 2, NAN, INF, "0.9")],
    *[("label_dropout", value) for value in (-0.1, 2, NAN, None)],
    *[("clip_norm", value) for value in (0, -1, NAN, None)],
    *[("loss", value) for value in ("image", "", None, 3)],
    *[("seed", value) for value in (-1, 0.5, None)],
]


@pytest.mark.parametrize(("name", "value"), TRAINING)
def test_a_number_of_the_training_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=rf"{name} must .*got"):
        replace(TrainingConfig(steps=10), **{name: value})


SAMPLING = [
    *[("n", value) for value in (0, -1, 2.5, NAN, "8", None, True)],
    *[("steps", value) for value in (0, -1, 2.5, "8", None)],
    *[("batch_size", value) for value in (0, -1, 2.5, None)],
    *[("seed", value) for value in (-1, 2**32, 0.5, None)],
    *[("guidance", value) for value in (-1, NAN, INF, "2", None)],
    *[("clip", value) for value in (0, -1, NAN, INF, "1")],
    ("labels", []),
]


@pytest.mark.parametrize(("name", "value"), SAMPLING)
def test_a_number_of_the_sampling_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        replace(SamplingConfig(4, labels=[0]), **{name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 41}, r"1\.\.40"),
        ({"eta": 1.5}, "eta"),
        ({"eta": "tilde"}, "eta"),
        ({"eta": NAN}, "eta"),
        ({"spacing": "even"}, "spacing"),
        ({"labels": [3]}, r"0\.\.2"),
        ({"labels": [-1]}, r"0\.\.2"),
        ({"labels": [0.5]}, "labels"),
    ],
)
def test_a_run_of_images_that_does_not_suit_the_network_leaves_no_folder(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        sample_shards(model(), SCHEDULE, replace(SamplingConfig(4, steps=3), **change), tmp_path / "out", {}, False)
    assert not (tmp_path / "out").exists()


# --- what a trainer is given -----------------------------------------------------------------------------------------


class Own(nn.Module):
    """A network of one's own, with few weights and no classes."""

    def __init__(self, weights=True):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1)) if weights else None

    def forward(self, x, t):
        return x * self.weight


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": to_model_range(images())}, "must be bytes 0..255, got torch.float32; to_bytes"),
        ({"images": images().int()}, "must be bytes"),
        ({"images": images().numpy()}, "must be a tensor"),
        ({"images": images()[0]}, r"must be \[B, C, H, W\]"),
        ({"images": images()[:0]}, "not empty"),
        ({"images": images()[:5]}, "5 images do not fill one batch of 6"),
        ({"images": images().expand(-1, 3, -1, -1)}, "1 channels, these have 3"),
        ({"labels": labels()[:-1]}, "11 labels for a batch of 12"),
        ({"labels": labels().float()}, "labels must be int64"),
        ({"labels": labels() + 1}, r"0\.\.2, got 1\.\.3"),
        ({"labels": labels() - 1}, r"0\.\.2, got -1"),
        ({"labels": ["cat"] * 12}, "labels must be numbers"),
        ({"schedule": NoiseSchedule.cosine(40)}, "was made for"),
        ({"schedule": 1000}, "must be a NoiseSchedule"),
        ({"model": Own()}, "without classes"),
        ({"model": Own(weights=False), "labels": None}, "no weights to train"),
        ({"model": "mnist"}, "model must be"),
    ],
    ids=str,
)
def test_what_a_trainer_cannot_use_is_named(change, message):
    given = {"model": model(), "schedule": SCHEDULE, "images": images(), "labels": labels()} | change
    with pytest.raises(ValueError, match=message):
        Trainer(**given, config=TrainingConfig(steps=3, batch_size=6))


# --- a run is what its settings say ----------------------------------------------------------------------------------


def trainer(folder, **change):
    config = TrainingConfig(steps=3, batch_size=6)
    given = {"model": model(), "schedule": SCHEDULE, "images": images(), "labels": labels(), "config": config} | change
    return Trainer(**given, checkpoint=folder / "checkpoint.safetensors")


def other_network(**change):
    return build_model(NETWORK | change, SCHEDULE)


COSINE = NoiseSchedule.cosine(40)
DIFFERENT_RUNS = {
    "images": {"images": images() + 1},
    "order": {"images": images().flip(0)},
    "labels": {"labels": labels().flip(0)},
    "no labels": {"labels": None},
    "betas": {"schedule": COSINE, "model": build_model(NETWORK, COSINE)},
    "network.groups": {"model": other_network(groups=4)},
    "network.dropout": {"model": other_network(dropout=0.1)},
    "network.image_size": {"model": other_network(image_size=16)},
    "bf16": {"bf16": True},
    "start_from": {"settings": {"start_from": "abc"}},
    "config.seed": {"config": TrainingConfig(steps=3, batch_size=6, seed=1)},
    "config.warp": {"config": TrainingConfig(steps=3, batch_size=6, warp=True)},
    "config.steps": {"config": TrainingConfig(steps=4, batch_size=6)},
}


@pytest.mark.parametrize("name", DIFFERENT_RUNS)
def test_a_training_is_not_continued_as_another(name, tmp_path):
    trainer(tmp_path).save()
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    named = {"order": "images", "no labels": "labels"}.get(name, name)
    with pytest.raises(ValueError, match=rf"other settings \(.*{named} = .*, not .*choose another output"):
        trainer(tmp_path, **DIFFERENT_RUNS[name])
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    trainer(tmp_path)  # and with the right ones it goes on


def test_a_run_may_be_extended_on_request(tmp_path):
    trainer(tmp_path).save()
    longer = {"config": TrainingConfig(steps=9, batch_size=6)}
    assert trainer(tmp_path, **longer, extend=True).config.steps == 9
    with pytest.raises(ValueError, match=r"config\.steps"):
        trainer(tmp_path, config=TrainingConfig(steps=2, batch_size=6), extend=True)


def judge(seed=0, channels=1):
    torch.manual_seed(seed)
    made = Judge(Classifier(channels, 3), facts={"floor": 0.0, "kind": "small", "channels": channels, "num_classes": 3})
    made.observe_real(randn(20, channels, 8, 8).float().clamp(-1, 1))
    return made


TABLE = {"steps": [1], "etas": [0.0], "n": 4, "progress": False}


def table(out, monkeypatch=None, **change):
    given = {"model": model(), "schedule": SCHEDULE, "judge": judge()} | TABLE | change
    return evaluate(**given, out=out, facts={})


def weights_of(seed):
    other = model()
    nn.init.normal_(next(other.parameters()), std=seed)
    return other


DIFFERENT_TABLES = {
    "weights": {"model": weights_of(1)},
    "betas": {"schedule": COSINE, "model": build_model(NETWORK, COSINE)},
    "network.groups": {"model": other_network(groups=4)},
    "judge": {"judge": judge(1)},
    "samples": {"n": 6},
    "seed": {"seed": 1},
    "spacing": {"spacing": "leading"},
    "guidance": {"guidance": 2.0},
    "bf16": {"bf16": True},
}


@pytest.mark.parametrize("name", DIFFERENT_TABLES)
def test_a_table_is_not_continued_with_another_network_or_judge(name, tmp_path):
    from ddimlib.provenance import model_settings

    settings = model_settings(model(), SCHEDULE) | {
        "samples": 4, "spacing": "linspace", "guidance": 1.0, "seed": 0, "judge": judge().digest(),
    }  # fmt: skip
    row = {"steps": 1, "eta": 0.0, "accuracy": 1, "frechet": 0}
    write_json(tmp_path / "t.json", {"settings": settings, "rows": [row], "provenance": []})
    assert table(tmp_path / "t.json")["rows"] == [row]  # nothing to do
    with pytest.raises(ValueError, match=rf"other settings \(.*{name} = "):
        table(tmp_path / "t.json", **DIFFERENT_TABLES[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": [2, 5000]}, r"1\.\.40"),
        ({"steps": [0]}, "steps"),
        ({"etas": [0.0, 2.0]}, "eta"),
        ({"etas": [NAN]}, "eta"),
        ({"n": 1}, r"n must lie in 2\.\."),
        ({"batch_size": 0}, "batch_size"),
        ({"spacing": "even"}, "spacing"),
        ({"guidance": NAN}, "guidance"),
        ({"guidance": -1.0}, "guidance"),
        ({"seed": -1}, "seed"),
        ({"judge": Judge(Classifier(1, 5), facts={"num_classes": 5})}, "knows 5 classes, the network 3"),
    ],
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", str(value)),  # workers must agree on the names
)
def test_a_table_that_cannot_be_finished_is_not_begun(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        table(tmp_path / "t.json", **change)
    assert list(tmp_path.iterdir()) == []


# --- files ------------------------------------------------------------------------------------------------------------

JSONS = {
    "a list": "[1]", "a number": "3", "null": "null", "empty": "", "cut": '{"a": ', "words": "hello", "bytes": "\udcff\udcfe",
    "deep": "[" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("kind", JSONS)
def test_every_json_file_that_is_none_is_named(kind, tmp_path):
    path = tmp_path / "f.json"
    path.write_bytes(JSONS[kind].encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"f\.json (is not a whole JSON file|must hold a JSON object)"):
        read_json(path)
    with pytest.raises(ValueError, match=r"f\.json"):
        table(path)
    (tmp_path / "manifest.json").write_bytes(path.read_bytes())
    for read in (
        load_samples,
        lambda folder: sample_shards(model(), SCHEDULE, SamplingConfig(4, steps=3), folder, {}, False),
    ):
        with pytest.raises(ValueError, match=r"manifest\.json"):
            read(tmp_path)


@pytest.mark.parametrize("content", [{}, {"complete": True}, {"complete": True, "settings": {}, "n": 3},
                                     {"complete": True, "settings": None, "n": "x"},
                                     {"complete": "no", "settings": {}, "n": 3, "provenance": []},
                                     {"complete": True, "settings": {}, "n": 3, "provenance": None}])  # fmt: skip
def test_a_manifest_that_says_too_little_is_refused(content, tmp_path):
    write_json(tmp_path / "manifest.json", content)
    with pytest.raises(ValueError, match=r"manifest\.json|not complete"):
        load_samples(tmp_path)


@pytest.mark.parametrize("rows", [[1], "x", None, {}])
def test_a_table_whose_rows_are_none_is_refused(rows, tmp_path):
    write_json(tmp_path / "t.json", {"settings": {"a": 1}, "rows": rows, "provenance": []})
    with pytest.raises(ValueError, match=r"t\.json holds no table"):
        open_table(tmp_path / "t.json", {"a": 1}, {})


def test_nan_is_not_written_as_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "f.json", {"loss": NAN})
    assert list(tmp_path.iterdir()) == []


def flips(path, count=17):
    """The content of a file with one bit flipped, at places spread over all of it."""
    content = path.read_bytes()
    for place in np.linspace(0, len(content) - 1, count).astype(int):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(place) % 8
        yield int(place), bytes(flipped)


@pytest.mark.parametrize("kind", ["checkpoint", "model", "judge", "tensors"])
def test_every_flipped_bit_is_found(kind, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    if kind == "checkpoint":
        trainer(tmp_path).save()
    elif kind == "model":
        save_model(path, model())
    elif kind == "judge":
        judge().save(path)
    else:
        write_tensors(path, {"a": randn(40)}, {"step": 1})
    read = {
        "checkpoint": lambda: trainer(tmp_path),
        "model": lambda: load_model(path),
        "judge": lambda: Judge.load(str(path)),
        "tensors": lambda: read_tensors(path),
    }[kind]
    read()
    for place, content in flips(path, 97):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"checkpoint\.safetensors"):
            read() and pytest.fail(f"a bit flipped in byte {place} was not found")


def doctored(path, tensors=lambda t: t, facts=lambda f: f):
    """A file with a valid checksum whose content is wrong."""
    found, theirs = read_tensors(path)
    write_tensors(path, tensors(dict(found)), facts(dict(theirs)))


def drop(word):
    return lambda tensors: {k: v for k, v in tensors.items() if not k.endswith(word)}


def alter(word, change):
    return lambda tensors: {k: change(v) if k.endswith(word) else v for k, v in tensors.items()}


BAD_CHECKPOINTS = {
    "no step": {"facts": lambda f: {k: v for k, v in f.items() if k != "step"}},
    "step as text": {"facts": lambda f: f | {"step": "7"}},
    "step beyond": {"facts": lambda f: f | {"step": 99}},
    "step negative": {"facts": lambda f: f | {"step": -1}},
    "no moments though begun": {"facts": lambda f: f | {"step": 2}},
    "no settings": {"facts": lambda f: f | {"settings": None}},
    "settings are a list": {"facts": lambda f: f | {"settings": [1]}},
    "facts": {"facts": lambda f: {}},
    "lost weight": {"tensors": drop("stem.weight")},
    "lost average": {"tensors": lambda t: {k: v for k, v in t.items() if not k.startswith("average")}},
    "integer weight": {"tensors": alter("stem.weight", lambda v: v.int())},
    "double weight": {"tensors": alter("stem.weight", lambda v: v.double())},
    "wrong shape": {"tensors": alter("stem.weight", lambda v: v[:1])},
    "one too many": {"tensors": lambda t: t | {"model.extra": torch.zeros(1)}},
    "nan": {"tensors": alter("stem.weight", lambda v: v * NAN)},
    "unknown moment": {"tensors": lambda t: t | {"optimizer0.0.momentum": torch.zeros(1)}},
}


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_a_checkpoint_that_is_wrong_inside_is_refused_by_name(kind, tmp_path):
    trainer(tmp_path).save()
    doctored(tmp_path / "checkpoint.safetensors", **BAD_CHECKPOINTS[kind])
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors"):
        trainer(tmp_path)


def network(**change):
    return lambda facts: {"network": facts["network"] | change}


BAD_MODELS = {
    "network null": {"facts": lambda f: {"network": None}},
    "network a list": {"facts": lambda f: {"network": [1]}},
    "no network": {"facts": lambda f: {}},
    "unknown argument": {"facts": network(depth=3)},
    "endless blocks": {"facts": network(blocks=[100_000, 1])},
    "huge widths": {"facts": network(widths=[10**9, 10**9])},
    "widths no list": {"facts": network(widths=8)},
    "groups 0": {"facts": network(groups=0)},
    "other classes": {"facts": network(num_classes=5)},
    "attention": {"facts": network(attention=[True, False])},
    "blocks null": {"facts": network(blocks=None)},
    "no betas": {"tensors": drop("betas")},
    "betas of 2": {"tensors": alter("betas", lambda v: v + 2)},
    "betas nan": {"tensors": alter("betas", lambda v: v * NAN)},
    "betas square": {"tensors": alter("betas", lambda v: v[None])},
    "no betas inside": {"tensors": alter("betas", lambda v: v[:0])},
    "lost weight": {"tensors": drop("stem.weight")},
    "one too many": {"tensors": lambda t: t | {"network.extra": torch.zeros(1)}},
    "integer weight": {"tensors": alter("stem.weight", lambda v: v.int())},
    "mixed precision": {"tensors": alter("stem.weight", lambda v: v.half())},
    "wrong shape": {"tensors": alter("stem.weight", lambda v: v[:1])},
    "nan": {"tensors": alter("stem.weight", lambda v: v * NAN)},
    "nothing": {"tensors": lambda t: {"betas": t["betas"]}},
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_a_model_file_that_is_wrong_inside_is_refused_by_name(kind, tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(path, model())
    doctored(path, **BAD_MODELS[kind])
    with pytest.raises(ValueError, match=r"m\.safetensors"):
        load_model(path)


BAD_JUDGES = {
    "kind": {"facts": lambda f: f | {"kind": "wise"}},
    "channels": {"facts": lambda f: f | {"channels": 3}},
    "classes": {"facts": lambda f: f | {"num_classes": 7}},
    "no classes": {"facts": lambda f: {"floor": 0.0}},
    "stored": {"facts": lambda f: f | {"stored_as": "paper"}},
    "lost": {"tensors": drop("1.weight")},
    "reference": {"tensors": drop("real_features_sum")},
    "dtype": {"tensors": alter("1.weight", lambda v: v.int())},
    "nan": {"tensors": alter("1.weight", lambda v: v * NAN)},
    "reference nan": {"tensors": alter("real_features_sum", lambda v: v * NAN)},
}


@pytest.mark.parametrize("kind", BAD_JUDGES)
def test_a_judge_that_is_wrong_inside_is_refused_by_name(kind, tmp_path):
    judge().save(tmp_path / "j.safetensors")
    doctored(tmp_path / "j.safetensors", **BAD_JUDGES[kind])
    with pytest.raises(ValueError, match=r"j\.safetensors"):
        Judge.load(str(tmp_path / "j.safetensors"))


@pytest.mark.parametrize("read", [read_tensors, load_model, read_json, lambda path: Judge.load(f"{path}.safetensors")])
def test_what_is_not_there_or_a_folder_is_named(read, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(tmp_path / "nowhere")
    for name in ("folder", "folder.safetensors"):
        (tmp_path / name).mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match="folder"):
        read(tmp_path / "folder")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: save_model(p / "m", Own(), SCHEDULE), "store another network by safetensors"),
        (lambda p: save_model(p / "m", nn.Linear(2, 2), SCHEDULE), "VelocityDenoiser around a UNet"),
        (lambda p: save_model(p / "m", model(), NoiseSchedule.cosine(40)), "was made for"),
        (lambda p: save_images(images(), p / "a.png"), "floating-point tensor.*to_model_range"),
        (lambda p: save_images(randn(4, 1, 8, 8), p / "a.xyz"), "not the name of a picture"),
        (lambda p: save_images(randn(4, 1, 8, 8), p / "a.png", columns=0), "columns"),
        (lambda p: save_images(randn(4, 1, 8, 8), p / "a.png", scale=0), "scale"),
        (lambda p: save_images(randn(4, 8, 8), p / "a.png"), "B, C, H, W"),
        (lambda p: picture_format("grid"), "not the name of a picture"),
        (lambda p: save_images(randn(4, 1, 8, 8), p / "a.webp", 1, 500), "more than can be written"),
        (lambda p: save_animation([randn(4, 1, 8, 8)] * 2, p / "a.jpg"), "cannot hold 2 frames"),
        (lambda p: save_animation([], p / "a.gif"), "cannot hold 0 frames"),
        (
            lambda p: save_model(p / "m", model(), network={"widths": (8,), "blocks": (1,), "attention": (False,)}),
            "another UNet",
        ),
        (lambda p: judge().accuracy(randn(2, 1, 8, 8).tanh(), [0.0, 1.0]), "labels must be int64"),
        (lambda p: judge().accuracy(randn(2, 1, 8, 8).tanh(), [0, 3]), r"0\.\.2"),
        (lambda p: judge().predict(randn(2, 3, 8, 8).tanh()), "this judge takes images"),
        (lambda p: judge().frechet_distance(randn(2, 1, 9, 8).tanh()), "this judge takes images"),
        (lambda p: check_output(""), "the name of the output is empty"),
        (lambda p: to_bytes(images()), "floating-point"),
        (lambda p: judge().predict(images()), "floating-point tensor.*to_model_range"),
        (lambda p: judge().frechet_distance(images()), "floating-point"),
        (lambda p: judge().observe_real(images().float()), r"about in \[-1, 1\], got values in \[0, 255\]"),
        (lambda p: judge().predict(randn(2, 1, 8, 8) * NAN), "NaN"),
        (lambda p: to_model_range(randn(2, 1, 8, 8)), "takes bytes"),
        (lambda p: with_channels(images().expand(-1, 2, -1, -1), 3), "2 channels"),
        (lambda p: load_dataset("imagenet"), "no data set 'imagenet'"),
        (lambda p: train_classifier("imagenet"), "no data set 'imagenet'"),
        (lambda p: train_classifier("mnist", epochs=0), "epochs must be at least 1"),
        (lambda p: judge().accuracy(randn(20, 1, 8, 8).float(), torch.tensor([1])), "1 labels for a batch of 20"),
        (lambda p: judge().frechet_distance(randn(1, 1, 8, 8).float()), "at least 2 images"),
        (lambda p: Judge.load(str(p / "x.safetensors")), "no file"),
    ],
)
def test_what_a_function_cannot_use_is_named_and_leaves_nothing(call, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        call(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- command lines ----------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model, a judge, pictures and what stands in the way."""
    monkeypatch.chdir(tmp_path)
    save_model("model.safetensors", model())
    judge().save("judge.safetensors")
    judge(channels=3).save("colour.safetensors")
    save_images(randn(1, 1, 8, 8), "longer/00007.png")
    (tmp_path / "existing").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "broken.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    (tmp_path / "broken.json").write_text("{")
    from PIL import Image

    for i in range(6):
        for name in ("a", "b"):
            (tmp_path / "pets" / "train" / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 20 * i).save(tmp_path / "pets" / "train" / name / f"{i}.png")
    return tmp_path


SAMPLE = "sample --model model.safetensors --steps 2 -n 2"
EVALUATE = "evaluate --model model.safetensors --judge judge.safetensors --steps 2 -n 4"
TRAIN = "train pets --widths 8 8 --blocks 1 1 --attention False False --steps 3"
COMMANDS = [
    (f"{SAMPLE} --columns 0", "columns must be at least 1"),
    (f"{SAMPLE} --scale 0", "scale must be at least 1"),
    (f"{SAMPLE} --scale 300000", "more than can be written"),
    (f"{SAMPLE} --out ''", "name of the output is empty"),
    (f"{SAMPLE} --n 1000000000000 --out run", r"n must lie in 1\.\."),
    (f"{SAMPLE} --labels 999999999999999999999", "labels must be numbers"),
    (f"{SAMPLE} --labels 1 --guidance 1e300", "guidance"),
    (f"{SAMPLE} --out longer --kind pictures", "00007.png of a longer run"),
    (f"{SAMPLE} --steps 41", r"1\.\.40"),
    (f"{SAMPLE} --steps 0", "steps must be at least 1"),
    (f"{SAMPLE} --n 0", r"n must lie in 1\.\."),
    (f"{SAMPLE} --batch-size 0", "batch_size must be at least 1"),
    (f"{SAMPLE} --eta nan", "eta"),
    (f"{SAMPLE} --eta 7", "eta"),
    (f"{SAMPLE} --seed -1", "seed"),
    (f"{SAMPLE} --clip 0", "clip"),
    (f"{SAMPLE} --guidance 2", "needs labels"),
    (f"{SAMPLE} --labels 1 --guidance nan", "guidance"),
    (f"{SAMPLE} --labels 3", r"0\.\.2"),
    (f"{SAMPLE} --out existing.png/x.png --model nowhere", "no model 'nowhere'"),
    (f"{SAMPLE} --out file/x.png", "file is not a folder"),
    (f"{SAMPLE} --out existing --kind picture", "existing is a folder"),
    (f"{SAMPLE} --out file", "file is a file"),
    (f"{SAMPLE} --out x.pdf", r"cannot be written as \.pdf"),
    (f"{SAMPLE} --out x.npz", r"cannot be written as \.npz"),
    (f"{SAMPLE} --out x.png --kind film", r"ends in \.gif or \.webp"),
    (f"{SAMPLE} --out x --kind picture", "not the name of a picture"),
    (f"{SAMPLE} --model judge.safetensors", "holds no model"),
    (f"{SAMPLE} --model existing", "no file existing/model.safetensors"),
    (f"{SAMPLE} --model missing.safetensors", r"no file missing\.safetensors"),
    (f"{SAMPLE} --device meta", "--device meta"),
    (f"{SAMPLE} --device xpu", "--device xpu"),
    (f"{SAMPLE} --device cuda:99", "--device cuda:99"),
    (f"{SAMPLE} --device gpu", "--device gpu"),
    (f"{EVALUATE} --steps 2 5000", r"1\.\.40"),
    (f"{EVALUATE} --eta 0 3", "eta"),
    (f"{EVALUATE} --eta", "at least one of each"),
    (f"{EVALUATE} --judge colour.safetensors", "takes images of 3 channels"),
    (f"{EVALUATE} -n 1", r"n must lie in 2\.\."),
    (f"{EVALUATE} --out list.json", r"list\.json must hold a JSON object"),
    (f"{EVALUATE} --out model.safetensors", r"model\.safetensors is not a whole JSON file"),
    (f"{EVALUATE} --out file/t.json", "file is not a folder"),
    (f"{EVALUATE} --out existing", "existing is a folder"),
    (f"{EVALUATE} --judge model.safetensors", "holds no judge"),
    (f"{EVALUATE} --judge wise", "wise"),
    ("evaluate --model model.safetensors", "holds no judge"),
    (f"{TRAIN} --out file", "file is a file"),
    (f"{TRAIN} --steps 0", "steps must be at least 1"),
    (f"{TRAIN} --steps -5", "steps must be at least 1"),
    (f"{TRAIN} --batch-size -1", "batch_size must be at least 1"),
    (f"{TRAIN} --batch-size 99", "do not fill one batch of 99"),
    (f"{TRAIN} --ema nan", "ema must"),
    (f"{TRAIN} --ema 2", "ema must"),
    (f"{TRAIN} --learning-rate inf", "learning_rate must"),
    (f"{TRAIN} --label-dropout 2", "label_dropout must"),
    (f"{TRAIN} --clip-norm -1", "clip_norm must"),
    (f"{TRAIN} --minutes nan", "--minutes must be finite"),
    (f"{TRAIN} --fit-minutes -1", "--fit-minutes must be finite"),
    (f"{TRAIN} --loss image", "loss must be one of"),
    (f"{TRAIN} --widths 8", "one entry a level|widths"),
    (f"{TRAIN} --widths 3 5", "multiples"),
    (f"{TRAIN} --groups 0", "groups"),
    (f"{TRAIN} --start-from model.safetensors", "leave widths, blocks, attention out"),
    ("train pets --steps 3 --start-from missing.safetensors", r"no file missing\.safetensors"),
    ("train pets --steps 3 --start-from broken.safetensors", r"broken\.json is not a whole JSON file"),
    ("train pets --steps 3 --start-from nothing", "no model 'nothing'"),
    ("train nowhere", "no data set 'nowhere'"),
    ("train file", "no data set 'file'"),
    ("train existing", "holds no pictures"),
    ("judge nowhere", "no data set 'nowhere'"),
    ("judge pets", "no folder test/"),
    ("judge pets --out file/x", "file is not a folder"),
    ("judge pets --epochs 0", "epochs must be at least 1"),
    ("interpolate --model model.safetensors --n 1", "--n must be at least 2"),
    ("interpolate --model model.safetensors --out x.xyz", "not the name of a picture"),
    ("interpolate --model model.safetensors --label 9", r"0\.\.2"),
    ("interpolate --model model.safetensors --seeds -1 2", "seed"),
    ("invert --model model.safetensors --steps 2", "use one of|folder of pictures"),
    ("invert --model model.safetensors --data mnist --steps 2 --n 0", r"--n must lie in 1\.\.200"),
    ("invert --model model.safetensors --data mnist --steps 2 --n 201", r"--n must lie in 1\.\.200"),
    ("invert --model model.safetensors --data mnist --steps 99", r"1\.\.40"),
    ("invert --model model.safetensors --data pets --steps 2 --scale 0", "scale must be at least 1"),
    ("invert --model model.safetensors --data mnist --steps 2 --scale 99999", "more than can be written"),
    ("interpolate --model model.safetensors --n 3000 --out x.webp", "more than can be written"),
    ("judge pets --seed 99999999999999999999999", "seed must lie in"),
    (f"{TRAIN} --seed 99999999999999999999999", "seed must lie in"),
    (f"{TRAIN} --ema 1", r"at most 0\.9999999, got 1"),
    ("export --model nowhere", "no model 'nowhere'"),
    ("export --model model.safetensors --out file/x.onnx", "file is not a folder"),
]


@pytest.mark.parametrize(("line", "message"), COMMANDS)
def test_a_command_that_cannot_succeed_says_so_in_a_line_before_the_work(line, message, place, capsys):
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
    try:
        status, boxed = main([*shlex.split(line), "--quiet"]), False
    except SystemExit as stop:  # a number that its dataclass refuses: in tyro's box
        status, boxed = stop.code, True
    printed = capsys.readouterr()
    error = " ".join((printed.out + printed.err).replace("│", " ").split())
    assert status == 2
    assert boxed or error.startswith("error: ")
    assert re.search(message, error), error
    assert "Traceback" not in error
    after = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert after == before


@pytest.mark.parametrize("line", ["", "paint", "sample --steps two", "sample --steps", "train", "sample --colour 3",
                                  "evaluate --eta x", "train pets --steps 1.5", "sample --spacing even"])  # fmt: skip
def test_words_that_stand_for_no_command_are_refused(line, place, capsys):
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    assert captured.err + captured.out


def test_an_error_of_kind_is_both():
    with pytest.raises(TypeError):
        TrainingConfig(steps="7")
    assert issubclass(KindError, ValueError)
