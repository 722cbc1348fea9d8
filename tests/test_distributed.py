"""Many processes: the same images and the same training as one process, and nothing lost when one of them dies."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers import short_schedule
from safetensors.torch import save_file
from test_training import NETWORK, data

import ddimlib
from ddimlib import __main__ as command_line
from ddimlib import distributed, load_model, sample, save_model, storage, training
from ddimlib.data import to_bytes
from ddimlib.distributed import SamplingConfig, exchange, load_samples, local_device, process_group, sample_shards
from ddimlib.pretrained import build_model
from ddimlib.provenance import model_settings
from ddimlib.storage import read_tensors
from ddimlib.training import Trainer, TrainingConfig

SCHEDULE = short_schedule()
# Eight files of eight images; of the last, one image is wanted.
CONFIG = SamplingConfig(57, steps=3, eta=0.5, seed=7, labels=[2, 0, 1], batch_size=8)
NAMES = [f"shard-{i:05d}.safetensors" for i in range(8)]
TRAINING = TrainingConfig(steps=6, batch_size=12, learning_rate=5e-3, warmup=2, ema=0.9, flip=True)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are started by a fork server")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the processes that are started here: with another number of threads, kernels may round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_model(seed: int = 0, network=NETWORK):
    """A network whose every weight matters: none is 0, as it would be at the start of training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(network, SCHEDULE)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    save_model(path, random_model(), SCHEDULE, NETWORK)
    return path


def options(model_path, out, config=CONFIG, *more) -> list[str]:
    """The command that draws `config`."""
    values = {k.replace("_", "-"): v for k, v in vars(config).items() if v is not None}
    values["labels"] = " ".join(map(str, config.labels))
    named = [word for name, value in values.items() for word in (f"--{name}", *str(value).split())]
    return ["sample", "--model", str(model_path), "--device", "cpu", "--out", str(out), *named, *more]


def draw(model_path, out, config=CONFIG):
    model, schedule = load_model(model_path)
    return sample_shards(model, schedule, config, out, {"command": "test"}, progress=False)


@pytest.fixture(scope="module")
def whole(model_path, tmp_path_factory):
    """The folder of a run by one process that nothing happened to."""
    out = tmp_path_factory.mktemp("whole")
    draw(model_path, out)
    return out


def shards(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*"))}


# --- starting processes ----------------------------------------------------------------------------------------------

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["ddimlib.__main__"])  # torch is imported once for all of them


def start(rank: int, size: int, port: int, folder: Path, function, arguments) -> None:
    """One process with the environment that torchrun gives it; what it prints goes to a file."""
    sys.stderr = open(folder / f"rank-{rank}.err", "w", buffering=1)  # noqa: SIM115
    sys.stdout = open(folder / f"rank-{rank}.out", "w", buffering=1)  # noqa: SIM115
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port)}
    os.environ.pop("TQDM_DISABLE", None)
    torch.set_num_threads(1)
    sys.exit(function(*arguments))


def in_processes(size: int, folder: Path, function, *arguments, wait: float = 240) -> tuple[list[int], list[str]]:
    """Call function(*arguments) in so many processes; returns their exit statuses and what they wrote to stderr."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes = [
        PROCESSES.Process(target=start, args=(i, size, port, folder, function, arguments)) for i in range(size)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + wait
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging, "a process did not end"
    return [p.exitcode for p in processes], [(folder / f"rank-{i}.err").read_text() for i in range(size)]


# --- samples ---------------------------------------------------------------------------------------------------------


def test_shards_hold_what_the_sampler_draws(model_path, whole):
    model, schedule = load_model(model_path)
    labels = torch.tensor([2, 0, 1] * 22)[:64]
    drawn = sample(model, schedule, (64, 1, 8, 8), 3, 0.5, seed=7, labels=labels, batch_size=8)
    images, classes = load_samples(whole)
    assert images.dtype == torch.uint8
    assert torch.equal(images, to_bytes(drawn)[:57])
    assert torch.equal(classes, labels[:57])
    assert len(images.flatten(1).unique(dim=0)) == 57  # no image twice


def test_every_batch_is_full(model_path, tmp_path, monkeypatch):
    """With fewer images, other kernels may run, which round differently."""
    shapes = []
    original = distributed.sample
    monkeypatch.setattr(distributed, "sample", lambda *a, **o: shapes.append(a[2]) or original(*a, **o))
    draw(model_path, tmp_path, replace(CONFIG, n=13))
    assert shapes == [(8, 1, 8, 8)] * 2
    assert len(load_samples(tmp_path)[0]) == 13


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_draws_the_same_bytes(processes, model_path, whole, tmp_path):
    """Eight files: two processes draw four each; of three, one draws only two."""
    statuses, errors = in_processes(
        processes, tmp_path / "log", command_line.main, options(model_path, tmp_path / "out")
    )
    assert statuses == [0] * processes, errors
    assert shards(tmp_path / "out") == shards(whole)
    assert list(shards(whole)) == NAMES
    assert "57/57" in errors[0]
    assert errors[1:] == [""] * (processes - 1)  # progress is shown once
    ours, theirs = (json.loads((folder / "manifest.json").read_text()) for folder in (tmp_path / "out", whole))
    assert ours["settings"] == theirs["settings"]
    assert ours["provenance"][0]["processes"] == processes
    assert ours["complete"]


def draw_differently(paths, out):
    """Rank 1 has another network."""
    with process_group("cpu") as device:
        model, schedule = load_model(paths[distributed.rank()], device)
        with pytest.raises(ValueError, match="differ in network"):
            sample_shards(model, schedule, CONFIG, out, {}, progress=False)


def test_processes_that_hold_different_networks_are_refused(model_path, tmp_path):
    other = tmp_path / "other.safetensors"
    save_model(other, random_model(1), SCHEDULE, NETWORK)
    statuses, errors = in_processes(2, tmp_path / "log", draw_differently, (model_path, other), tmp_path / "out")
    assert statuses == [0, 0], errors
    assert not (tmp_path / "out").exists()


def test_other_settings_in_the_same_folder_are_refused_by_all_with_one_message(model_path, tmp_path):
    few = replace(CONFIG, n=3)
    draw(model_path, tmp_path / "out", few)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    command = options(model_path, tmp_path / "out", replace(few, seed=8, eta=1.0))
    statuses, errors = in_processes(2, tmp_path / "log", command_line.main, command)
    assert statuses == [2, 2]
    assert errors[0].startswith("error: rank 0: ")
    assert "belongs to a run with other settings (eta = 0.5, not 1.0; seed = 7, not 8)" in errors[0]
    assert "choose another output" in errors[0]
    assert errors[1] == ""
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": 4}, "steps = 3, not 4"),
        ({"spacing": "leading"}, "spacing = 'linspace', not 'leading'"),
        ({"labels": [0]}, r"labels = \[2, 0, 1\], not \[0\]"),
        ({"guidance": 2.0}, "guidance = 1.0, not 2.0"),
        ({"clip": 1.0}, "clip = None, not 1.0"),
        ({"batch_size": 4}, "batch_size = 8, not 4"),
    ],
)
@pytest.mark.parametrize("kept", ["*", "manifest.json", "shard-*"])
def test_every_setting_counts(change, named, kept, model_path, whole, tmp_path):
    """Whatever is left of the folder: all, the manifest, or the shards."""
    for path in whole.glob(kept):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=named):
        draw(model_path, tmp_path, replace(CONFIG, **change))
    assert shards(tmp_path) == (shards(whole) if kept != "manifest.json" else {})


def test_another_network_in_the_same_folder_is_refused(whole, tmp_path):
    with pytest.raises(ValueError, match=r"weights = '[0-9a-f]{16}', not '[0-9a-f]{16}'"):
        sample_shards(random_model(1), SCHEDULE, CONFIG, whole, {}, progress=False)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": 41}, "must lie in 1..40"),
        ({"eta": 1.5}, "got 1.5"),
        ({"labels": [3]}, "0..2"),
        ({"labels": None, "guidance": 2.0}, "needs labels"),
    ],
)
def test_a_bad_setting_leaves_no_folder_behind(change, named, model_path, tmp_path):
    """Else the right setting, given next, would be refused as another one."""
    with pytest.raises(ValueError, match=named):
        draw(model_path, tmp_path / "out", replace(CONFIG, **change))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["n", "steps", "batch_size"])
def test_counts_are_positive(name):
    with pytest.raises(ValueError, match=f"{name} must .* 1.*, got 0"):
        replace(CONFIG, **{name: 0})
    with pytest.raises(ValueError, match="labels is empty"):
        replace(CONFIG, labels=[])


def test_a_network_without_labels(tmp_path):
    network = NETWORK | {"num_classes": None}
    sample_shards(random_model(0, network), SCHEDULE, replace(CONFIG, n=9, labels=None), tmp_path, {}, progress=False)
    images, labels = load_samples(tmp_path)
    assert images.shape == (9, 1, 8, 8)
    assert labels is None


def test_a_longer_run_begins_with_the_same_images(model_path, whole, tmp_path):
    draw(model_path, tmp_path, replace(CONFIG, n=18))
    assert torch.equal(load_samples(tmp_path)[0], load_samples(whole)[0][:18])


@pytest.mark.parametrize("batch_size", [1, 5, 19])
def test_another_batch_size_changes_the_images_by_rounding_only(batch_size, model_path, whole, tmp_path):
    draw(model_path, tmp_path, replace(CONFIG, batch_size=batch_size))
    difference = load_samples(tmp_path)[0].int() - load_samples(whole)[0].int()
    assert difference.abs().max() <= 1
    assert (difference != 0).double().mean() < 1e-3  # a byte that lay between two levels


def test_the_manifest_says_what_is_there_and_where_it_comes_from(model_path, whole):
    manifest = json.loads((whole / "manifest.json").read_text())
    model, schedule = load_model(model_path)
    settings = vars(CONFIG) | model_settings(model, schedule) | {"shape": [1, 8, 8]}
    assert manifest == {
        "settings": json.loads(json.dumps({k: v for k, v in settings.items() if k != "n"})),
        "n": 57,
        "complete": True,
        "provenance": [{"command": "test", "processes": 1}],
    }
    assert list(shards(whole)) == NAMES
    assert list(whole.glob(".*.tmp")) == []


# --- stop and continue -----------------------------------------------------------------------------------------------


def stamps(folder) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")}


def test_only_what_is_missing_is_drawn(model_path, whole, tmp_path, monkeypatch):
    """Whatever was lost: a shard, a shard that the manifest does not list yet, the manifest."""
    draw(model_path, tmp_path)
    (tmp_path / NAMES[2]).unlink()
    manifest = json.loads((tmp_path / "manifest.json").read_text()) | {"complete": False}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / f".{NAMES[2]}.{storage._HOST}.{gone()}.0.tmp").write_bytes(b"half a shard")
    before = stamps(tmp_path)
    with pytest.raises(ValueError, match="not complete"):
        load_samples(tmp_path)

    drawn = []
    original = distributed.sample
    monkeypatch.setattr(distributed, "sample", lambda *a, **o: drawn.append(o["first"]) or original(*a, **o))
    draw(model_path, tmp_path)
    assert drawn == [16]
    assert shards(tmp_path) == shards(whole)
    assert {name: stamp for name, stamp in stamps(tmp_path).items() if name != NAMES[2]} == before
    assert list(tmp_path.glob(".*.tmp")) == []
    assert len(json.loads((tmp_path / "manifest.json").read_text())["provenance"]) == 2

    drawn.clear()
    content = (tmp_path / "manifest.json").read_bytes()
    draw(model_path, tmp_path)  # a finished run has nothing left to do
    assert drawn == []
    assert (tmp_path / "manifest.json").read_bytes() == content
    (tmp_path / "manifest.json").unlink()
    draw(model_path, tmp_path)
    assert drawn == []
    assert len(load_samples(tmp_path)[0]) == 57


def gone() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return process.pid


def damage(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm", [damage, lambda path: path.write_bytes(b""), lambda path: save_file({"images": torch.zeros(8)}, path)]
)
def test_a_damaged_shard_is_refused_and_drawn_again_when_removed(harm, model_path, whole, tmp_path):
    draw(model_path, tmp_path)
    harm(tmp_path / NAMES[3])
    for read in (load_samples, lambda folder: draw(model_path, folder)):
        with pytest.raises(ValueError, match=f"{NAMES[3]} .*If you remove the file"):
            read(tmp_path)
    (tmp_path / NAMES[3]).unlink()
    with pytest.raises(FileNotFoundError, match=NAMES[3]):
        load_samples(tmp_path)
    draw(model_path, tmp_path)
    assert shards(tmp_path) == shards(whole)


def test_a_folder_without_samples_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        load_samples(tmp_path)


KILLED_WHILE_IT_WRITES = """
import os, signal

def replace(source, target, replace=os.replace):
    if str(target).endswith("shard-00003.safetensors"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = replace
"""


def test_a_killed_rank_ends_the_run_and_other_ranks_continue_it(model_path, whole, tmp_path):
    """Rank 1 of 2 is killed between writing its second shard and naming it; three processes then draw what is missing."""
    out = tmp_path / "out"
    (tmp_path / "sitecustomize.py").write_text(KILLED_WHILE_IT_WRITES)  # every Python runs it at its start
    path = os.pathsep.join([str(tmp_path), str(Path(ddimlib.__file__).parents[1])])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ddimlib"]
    # -n: before Python 3.12.8, torchrun itself stumbles over --n
    command = ["-n" if word == "--n" else word for word in options(model_path, out)]
    run = subprocess.run(
        launch + command,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 1
    assert "the same command again continues" in run.stderr
    assert "Signal 9 (SIGKILL)" in run.stderr  # torchrun's own report names the cause
    there = shards(out)
    assert NAMES[1] in there  # rank 1 had finished its first; rank 0 went on until it was told to stop
    assert there.keys() <= {NAMES[1], *NAMES[::2]}
    assert all(there[name] == shards(whole)[name] for name in there)
    assert not json.loads((out / "manifest.json").read_text())["complete"]
    assert list(out.glob(f".{NAMES[3]}.*.tmp"))
    before = stamps(out)

    statuses, errors = in_processes(3, tmp_path / "log", command_line.main, options(model_path, out, CONFIG, "--quiet"))
    assert statuses == [0, 0, 0], errors
    assert (tmp_path / "log" / "rank-0.out").read_text() == (
        f"wrote {out}: 57 images in 8 files, and manifest.json about them\n"
    )
    assert shards(out) == shards(whole)
    assert {name: stamps(out)[name] for name in before} == before  # nothing was drawn twice
    assert list(out.glob(".*.tmp")) == []
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["complete"]
    assert [start["processes"] for start in manifest["provenance"]] == [2, 3]


# --- the conversation ------------------------------------------------------------------------------------------------


def lose_touch(how, noticed):
    """Rank 1 ends, or falls silent until rank 0, which waits at most two seconds, has noticed."""
    with process_group("cpu", timedelta(seconds=2)):
        exchange("hello")
        if distributed.rank() == 1 and how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        while distributed.rank() == 1:
            time.sleep(0.05)
            if noticed.exists():
                os._exit(0)
        exchange("still there?")


def notice(how, noticed):
    with pytest.raises(RuntimeError, match="the same command again continues"):
        lose_touch(how, noticed)
    noticed.touch()
    os._exit(7)


@pytest.mark.parametrize("how", ["dies", "falls silent"])
def test_nobody_waits_for_ever(how, tmp_path):
    statuses, errors = in_processes(2, tmp_path, notice, how, tmp_path / "noticed")
    assert statuses == [7, -signal.SIGKILL if how == "dies" else 0], errors


def talk():
    with process_group("cpu"):
        me = distributed.rank()
        assert distributed.world_size() == 3
        assert exchange({"rank": me}) == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert distributed.on_first(lambda: me + 10) == 10
        if me == 2:
            os.kill(os.getpid(), signal.SIGTERM)  # as torchrun does
            time.sleep(10)


def be_asked_to_stop():
    try:
        talk()
    except KeyboardInterrupt:
        return 130
    return 0


def test_what_processes_say_and_how_they_are_stopped(tmp_path):
    statuses, errors = in_processes(3, tmp_path, be_asked_to_stop)
    assert statuses == [0, 0, 130], errors


def test_alone_there_is_nobody_to_talk_to(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with process_group("cpu") as device:
        assert device == "cpu"
        assert not dist.is_initialized()
        assert (distributed.rank(), distributed.world_size()) == (0, 1)
        assert exchange("x") == ["x"]
        with pytest.raises(OSError, match="full"):
            distributed.on_first(lambda: (_ for _ in ()).throw(OSError("full")))


def test_each_process_has_a_gpu_of_its_own():
    assert local_device("cpu", 5, 0) == "cpu"
    assert [local_device("cuda", i, 4) for i in range(4)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    with pytest.raises(ValueError, match="process 4 of this machine has no GPU, there are 4"):
        local_device("cuda", 4, 4)
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES"):
        local_device("cuda:0", 0, 4)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["sample", "--out", "grid.PNG"], "is drawn by one process; under torchrun give --out a folder"),
        (["evaluate"], "only train and sample"),
        (["judge", "mnist"], "only train and sample"),
    ],
)
def test_what_cannot_be_shared_is_refused(command, message, monkeypatch, capsys):
    monkeypatch.setattr(command_line, "world_size", lambda: 2)
    assert command_line.main(command) == 2
    assert message in capsys.readouterr().err


def test_the_name_decides_between_a_picture_and_a_folder(model_path, tmp_path, capsys):
    for name in ("a.png", "b.PNG"):
        assert command_line.main(options(model_path, tmp_path / name, replace(CONFIG, n=2), "--quiet")) == 0
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert command_line.main(options(model_path, tmp_path / "v1.2", replace(CONFIG, n=2))) == 0
    assert load_samples(tmp_path / "v1.2")[0].shape == (2, 1, 8, 8)
    assert "2/2" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert command_line.main(options(model_path, tmp_path / "file", replace(CONFIG, n=2), "--quiet")) == 2
    assert capsys.readouterr().err.startswith("error: ")


# --- training --------------------------------------------------------------------------------------------------------


def trainer(checkpoint=None, config=TRAINING, dropout: float = 0.0) -> Trainer:
    return Trainer(random_model(0, NETWORK | {"dropout": dropout}), SCHEDULE, *data(), config, checkpoint)


def weights(of: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for m in (of.model, of.averaged_model) for p in m.parameters()])


def train(folder, config, steps: int) -> None:
    """Train on; each process writes down its losses, weights, first gradient, and which shares and dropout seeds it had."""
    with process_group("cpu"):
        ours = trainer(folder / f"checkpoint-{distributed.rank()}.safetensors", config)
        assert len(set(exchange(ours.step))) == 1
        shapes, seeds = [], []
        ours.model.register_forward_pre_hook(lambda _, inputs: shapes.append(len(inputs[0])))
        ours.model.register_forward_pre_hook(lambda _, inputs: seeds.append(torch.initial_seed()))
        losses = [ours.train_step().item()]
        first = gradient(ours)
        losses += [ours.train_step().item() for _ in range(steps - 1)]
        ours.save()
        facts = {"losses": losses, "shapes": shapes, "seeds": seeds}
        storage.write_tensors(folder / f"rank-{ours.rank}", {"weights": weights(ours), "gradient": first}, facts)


def gradient(of: Trainer) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in of.model.parameters()])


def train_alone(config) -> tuple[list[float], torch.Tensor]:
    ours = trainer(config=config)
    losses = [ours.train_step().item()]
    first = gradient(ours)
    return losses + [ours.train_step().item() for _ in range(config.steps - 1)], first


@pytest.mark.parametrize(("processes", "clip_norm"), [(2, 1e9), (3, 0.05)])  # never clipped, and always
def test_training_by_many_is_training_by_one(processes, clip_norm, tmp_path):
    config = replace(TRAINING, clip_norm=clip_norm)
    losses, first = train_alone(config)
    assert (first.norm().item() == pytest.approx(0.05, rel=1e-4)) == (clip_norm == 0.05)
    statuses, errors = in_processes(processes, tmp_path, train, tmp_path, config, config.steps)
    assert statuses == [0] * processes, errors
    states = [read_tensors(tmp_path / f"rank-{i}") for i in range(processes)]
    for tensors, facts in states:
        assert facts["losses"] == pytest.approx(losses, rel=1e-4)
        assert facts["shapes"] == [12 // processes] * config.steps
        assert torch.equal(tensors["weights"], states[0][0]["weights"])
        assert (tensors["gradient"] - first).norm() < 1e-4 * first.norm()
    assert len({tuple(facts["seeds"]) for _, facts in states}) == processes  # each draws dropout of its own


def test_training_continues_with_another_number_of_processes(tmp_path):
    losses, _ = train_alone(TRAINING)
    statuses, errors = in_processes(2, tmp_path, train, tmp_path, TRAINING, 4)
    assert statuses == [0, 0], errors
    assert not (tmp_path / "checkpoint-1.safetensors").exists()  # one process writes for all
    ours = trainer(tmp_path / "checkpoint-0.safetensors")
    assert ours.step == 4
    assert [ours.train_step().item() for _ in range(2)] == pytest.approx(losses[4:], rel=1e-4)


def share_unevenly():
    with process_group("cpu"):
        dist.get_world_size = lambda: 5
        trainer()


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    statuses, errors = in_processes(1, tmp_path, share_unevenly)
    assert statuses == [1]
    assert "ValueError: a batch of 12 cannot be shared evenly by 5 processes" in errors[0]


def command_that_dies(arguments, die_at):
    """The train command on small data; rank 1 is killed in a step."""
    images, labels = data()
    command_line.load_dataset = lambda name, root: (images, labels)
    training.RECIPES["mnist"] = training.Recipe(NETWORK | {"dropout": 0.0}, training.TrainingConfig(steps=6))
    step = Trainer.train_step

    def deadly_step(ours):
        if ours.rank == 1 and ours.step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        loss = step(ours)
        ours.save()
        return loss

    Trainer.train_step = deadly_step
    return command_line.main(arguments)


def test_the_train_command_survives_the_death_of_a_rank(tmp_path):
    arguments = ["train", "mnist", "--out", str(tmp_path / "run"), "--batch-size", "12", "--device", "cpu", "--quiet"]
    statuses, errors = in_processes(2, tmp_path / "a", command_that_dies, arguments, 3)
    assert statuses == [2, -signal.SIGKILL]
    assert "the same command again continues" in errors[0]
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert read_tensors(tmp_path / "run" / "checkpoint.safetensors")[1]["step"] == 3

    statuses, errors = in_processes(2, tmp_path / "b", command_that_dies, arguments, -1)
    assert statuses == [0, 0], errors
    card = json.loads((tmp_path / "run" / "model.json").read_text())
    assert card["steps"] == 6
    assert "wrote" in (tmp_path / "b" / "rank-0.out").read_text()
    assert (tmp_path / "b" / "rank-1.out").read_text() == ""


def test_running_out_of_minutes_is_no_failure_to_torchrun(tmp_path):
    arguments = ["train", "mnist", "--out", str(tmp_path / "run"), "--batch-size", "12", "--device", "cpu", "--quiet"]
    statuses, errors = in_processes(2, tmp_path / "a", command_that_dies, [*arguments, "--minutes", "0"], -1)
    assert statuses == [0, 0], errors
    assert errors[0].startswith("unfinished: 1 of 6 steps")


def test_a_larger_n_continues_and_a_smaller_one_is_refused(model_path, whole, tmp_path):
    draw(model_path, tmp_path, replace(CONFIG, n=18))
    before = stamps(tmp_path)
    draw(model_path, tmp_path)
    assert shards(tmp_path) == shards(whole)
    assert {name: stamps(tmp_path)[name] for name in before} == before
    assert torch.equal(load_samples(tmp_path)[0], load_samples(whole)[0])
    with pytest.raises(ValueError, match="holds n = 57 images, more than 18"):
        draw(model_path, tmp_path, replace(CONFIG, n=18))


def test_a_shorter_run_that_ends_later_does_not_hide_a_longer_ones_images(model_path, whole, tmp_path, monkeypatch):
    original, called = distributed.sample, []

    def meanwhile(*args, **options):
        if not called:
            called.append(True)
            draw(model_path, tmp_path)
        return original(*args, **options)

    monkeypatch.setattr(distributed, "sample", meanwhile)
    draw(model_path, tmp_path, replace(CONFIG, n=18))
    assert torch.equal(load_samples(tmp_path)[0], load_samples(whole)[0])


def test_a_file_in_the_place_of_another_is_found(model_path, whole, tmp_path):
    draw(model_path, tmp_path)
    (tmp_path / NAMES[0]).write_bytes((tmp_path / NAMES[1]).read_bytes())
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ValueError, match=f"{NAMES[0]} does not hold the images 0 to 7"):
        draw(model_path, tmp_path)


def test_two_runs_on_one_folder_draw_the_same(model_path, whole, tmp_path):
    """A second run that begins while the first is at work neither harms it nor is harmed."""
    draw(model_path, tmp_path / "out", replace(CONFIG, n=25))
    (tmp_path / "out" / NAMES[1]).unlink()
    original, called = distributed.write_tensors, []

    def meanwhile(path, *rest):
        if not called:
            called.append(path)
            draw(model_path, tmp_path / "out", replace(CONFIG, n=25))
        original(path, *rest)

    distributed.write_tensors = meanwhile
    try:
        draw(model_path, tmp_path / "out", replace(CONFIG, n=25))
    finally:
        distributed.write_tensors = original
    assert shards(tmp_path / "out") == {name: shards(whole)[name] for name in NAMES[:4]}
    assert len(load_samples(tmp_path / "out")[0]) == 25


# --- GPUs ------------------------------------------------------------------------------------------------------------


def draw_and_train(model_path, folder) -> None:
    """On GPUs, and by NCCL: everything the processes say to each other, and the gradients."""
    with process_group("cuda") as device:
        assert torch.device(device).index == distributed.rank() == torch.cuda.current_device()
        assert dist.get_backend_config() == "cpu:gloo,cuda:nccl"
        model, schedule = load_model(model_path, device)
        sample_shards(model, schedule, CONFIG, folder / "out", {}, progress=False)
        images, labels = data()
        ours = Trainer(random_model(0, NETWORK | {"dropout": 0.0}), SCHEDULE, images, labels, TRAINING, device=device)
        losses = [ours.train_step().item() for _ in range(TRAINING.steps)]
        storage.write_tensors(folder / f"rank-{ours.rank}", {"weights": weights(ours)}, {"losses": losses})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_gpus_draw_and_train_as_one_cpu_does(model_path, whole, tmp_path):
    gpus = min(2, torch.cuda.device_count())
    statuses, errors = in_processes(gpus, tmp_path, draw_and_train, model_path, tmp_path)
    assert statuses == [0] * gpus, errors
    difference = load_samples(tmp_path / "out")[0].int() - load_samples(whole)[0].int()
    assert difference.abs().max() <= 1
    losses, _ = train_alone(TRAINING)
    states = [read_tensors(tmp_path / f"rank-{i}") for i in range(gpus)]
    assert all(facts["losses"] == pytest.approx(losses, rel=1e-2) for _, facts in states)
    assert all(torch.equal(tensors["weights"], states[0][0]["weights"]) for tensors, _ in states)
