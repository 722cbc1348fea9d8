"""Files that are whole or not there, and nothing that runs code when it is read."""

import errno
import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers import randn, short_schedule
from safetensors.torch import save_file

import ddimlib
from ddimlib import NoiseSchedule, load_model, load_pretrained, save_model, storage
from ddimlib.pretrained import build_model
from ddimlib.provenance import provenance
from ddimlib.storage import (
    check_output,
    locked,
    read_json,
    read_tensors,
    write_atomically,
    write_json,
    write_tensors,
)

TENSORS = {"a": randn(3, 4), "b": torch.arange(5), "c": torch.tensor(2.5, dtype=torch.bfloat16)}
FACTS = {"step": 3, "name": "ᾱ", "nested": {"list": [1, 2.5, None]}}


def test_tensors_and_facts_come_back_as_they_were(tmp_path):
    write_tensors(tmp_path / "new" / "file.safetensors", TENSORS, FACTS)  # makes the folder
    tensors, facts = read_tensors(tmp_path / "new" / "file.safetensors")
    assert facts == FACTS
    assert tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value)


def test_any_memory_layout_is_stored_by_value(tmp_path):
    x = randn(2, 3, 4, 5)
    write_tensors(
        tmp_path / "f", {"last": x.to(memory_format=torch.channels_last), "turned": x.permute(3, 2, 1, 0)}, {}
    )
    tensors, _ = read_tensors(tmp_path / "f")
    assert torch.equal(tensors["last"], x)
    assert torch.equal(tensors["turned"], x.permute(3, 2, 1, 0))


def test_json_is_readable_and_ends_with_a_newline(tmp_path):
    write_json(tmp_path / "f.json", FACTS)
    text = (tmp_path / "f.json").read_text(encoding="utf-8")
    assert json.loads(text) == FACTS
    assert "ᾱ" in text
    assert text.endswith("}\n")


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(fails, error, tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*args):
        raise error("disk full")

    monkeypatch.setattr(os, fails, fail)
    with pytest.raises(error, match="disk full"):
        write_atomically(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_file_is_on_disk_in_full_before_it_takes_the_name(tmp_path, monkeypatch):
    path, order = tmp_path / "file", []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: order.append(("fsync", os.fstat(fd).st_size)) or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: order.append(("replace", b)) or replace(a, b))
    write_atomically(path, b"12345")
    assert order == [("fsync", 5), ("replace", path)]
    assert list(tmp_path.iterdir()) == [path]


def left_behind(path, pid, host=storage._HOST):
    temporary = path.with_name(f".{path.name}.{host}.{pid}.0123.tmp")
    temporary.write_bytes(b"half")
    return temporary


def test_what_a_killed_writer_left_is_removed_and_a_living_ones_stays(tmp_path):
    path = tmp_path / "file.json"
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    dead, other_file = left_behind(path, process.pid), left_behind(tmp_path / "other.json", process.pid)
    living, ours = left_behind(path, os.getppid()), left_behind(path, os.getpid())
    recent, old = left_behind(path, 1, "elsewhere"), left_behind(path, 2, "elsewhere")
    os.utime(old, (0, 0))
    write_json(path, {})
    assert not any(gone.exists() for gone in (dead, ours, old))
    assert all(kept.exists() for kept in (living, recent, other_file))


def test_threads_that_write_one_file_do_not_disturb_each_other(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: write_json(tmp_path / "f.json", {"i": i}), range(100)))
    assert read_json(tmp_path / "f.json")["i"] in range(100)
    assert [path.name for path in tmp_path.iterdir()] == ["f.json"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_names_the_file_that_the_user_knows(function, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, function, full)
    with pytest.raises(OSError, match=r"No space left on device: '.*file\.json'") as error:
        write_json(tmp_path / "file.json", {})
    assert error.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_known_beforehand_and_nothing_is_left(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path, folder in (("file/x", False), ("file/x/y", True), ("folder", False), ("file", True)):
        with pytest.raises(OSError, match=r"file|folder"):
            check_output(tmp_path / path, folder)
    assert check_output(tmp_path / "new" / "deep" / "x") == tmp_path / "new" / "deep" / "x"
    assert check_output(tmp_path / "new", folder=True) == tmp_path / "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_lock_is_held_by_one_at_a_time(tmp_path):
    with locked(tmp_path / "f"), pytest.raises(OSError, match=r"another process is at work on .*f; wait"):  # noqa: SIM117
        with locked(tmp_path / "f", wait=False):
            pytest.fail("both held it")
    with locked(tmp_path / "f", wait=False):
        pass


WRITER = """
import sys
from pathlib import Path
from ddimlib.evaluation import add_row, open_table
out = Path("table.json")
table = open_table(out, {"a": 1}, {"by": sys.argv[1]})
for i in range(20):
    add_row(out, table, {"eta": float(sys.argv[1]), "steps": i}, ("eta", "steps"))
"""


def test_two_commands_that_extend_one_table_lose_no_row(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(ddimlib.__file__).parents[1])}
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(k)], cwd=tmp_path, env=environment) for k in (0, 1)]
    assert [writer.wait(300) for writer in writers] == [0, 0]
    rows = read_json(tmp_path / "table.json")["rows"]
    assert sorted((row["eta"], row["steps"]) for row in rows) == [(float(k), i) for k in (0, 1) for i in range(20)]


def test_files_are_the_same_bytes_each_time(tmp_path):
    for name in ("a", "b"):
        write_tensors(tmp_path / name, TENSORS, FACTS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# --- files that are something else -----------------------------------------------------------------------------------


class Bomb:
    """Unpickling this leaves a trace."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def truncate(path):
    write_tensors(path, TENSORS, FACTS)
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (truncate, "not a whole safetensors file"),
        (lambda path: path.write_bytes(b""), "not a whole safetensors file"),
        (lambda path: path.write_text("a text of some length, and no tensors\n" * 20), "not a whole safetensors file"),
        (lambda path: save_file({"a": torch.ones(2)}, path), "not written by ddimlib"),
        (lambda path: save_file({"a": torch.ones(2)}, path, {"format": "pt"}), "not written by ddimlib"),
    ],
    ids=["truncated", "empty", "text", "foreign", "foreign with metadata"],
)
def test_a_damaged_or_foreign_file_is_refused_by_name(write, named, tmp_path):
    path = tmp_path / "file.safetensors"
    write(path)
    for read in (read_tensors, load_model):
        with pytest.raises(ValueError, match=named) as error:
            read(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("dump", [lambda o, path: path.write_bytes(pickle.dumps(o)), torch.save])
def test_nothing_is_unpickled(dump, tmp_path):
    path, trace = tmp_path / "file.safetensors", tmp_path / "trace"
    dump(Bomb(trace), path)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_tensors(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace))).close()  # the trace would have shown
    assert trace.exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_tensors(tmp_path / "nowhere")


# --- models ----------------------------------------------------------------------------------------------------------


def test_a_model_comes_back_with_its_schedule(tmp_path):
    network = {"widths": (8, 16), "blocks": (1, 1), "attention": (False, True), "image_size": 8, "num_classes": 3}
    schedule = short_schedule()
    model = build_model(network, schedule).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    save_model(tmp_path / "m.safetensors", model, schedule, network)
    loaded, loaded_schedule = load_model(tmp_path / "m.safetensors")
    assert torch.equal(loaded_schedule.alpha_bar, schedule.alpha_bar)
    assert not any(m.training for m in loaded.modules())
    assert loaded.num_classes == 3
    x, t = randn(2, 1, 8, 8).float(), torch.tensor([3, 40])
    with torch.no_grad():
        assert loaded(x, t, torch.tensor([0, 3])).allclose(model(x, t, torch.tensor([0, 3])), atol=1e-5)


def test_a_ddimlib_file_without_a_model_is_refused(tmp_path):
    write_tensors(tmp_path / "f", TENSORS, FACTS)
    with pytest.raises(ValueError, match="holds no model"):
        load_model(tmp_path / "f")


def test_an_unknown_pretrained_name_is_refused():
    with pytest.raises(ValueError, match="'imagenet'; shipped are"):
        load_pretrained("imagenet")


def test_betas_survive_storage_in_full_precision(tmp_path):
    schedule = NoiseSchedule.cosine(50)
    write_tensors(tmp_path / "f", {"betas": schedule.beta[1:]}, {})
    assert torch.equal(NoiseSchedule(read_tensors(tmp_path / "f")[0]["betas"]).alpha_bar, schedule.alpha_bar)


def test_provenance_can_be_stored_and_says_the_version():
    facts = provenance()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["torch"] == torch.__version__.split("+")[0]
    assert {"command", "ddimlib", "device", "date"} <= facts.keys()


@pytest.mark.parametrize(
    ("processes", "launcher"), [(None, "python"), ("1", "python"), ("2", "torchrun --nproc-per-node 2")]
)
def test_provenance_says_how_many_processes_were_started(processes, launcher, monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    monkeypatch.setattr(sys, "argv", ["somewhere/__main__.py", "train", "mnist"])
    assert provenance()["command"] == f"{launcher} -m ddimlib train mnist"
