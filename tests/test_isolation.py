"""What a student's code can see and reach while it is graded."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from students import PATIENCE

from classroom.course import ROOT
from classroom.sandbox import ANSWER_KEYS, Process, Sandbox, Stopped, StudentError


@pytest.fixture(scope="module")
def process(sandbox):
    process = Process(sandbox, PATIENCE)
    process.run("import os, socket, sys, torch", "cell a")
    process.run("def look(expression): return eval(expression)", "cell b")
    yield process
    process.stop()


def namespaces_or_skip(sandbox):
    if sandbox.level != "namespaces":
        pytest.skip(f"this machine gives isolation {sandbox.level!r} only")


@pytest.mark.parametrize(
    "path",
    [
        ROOT / "assignments",
        ROOT / "tests",
        ROOT / ".git",
        ROOT / "ddimlib",
        Path.home() / ".ssh",
        "/home",
        "/var",
        "/etc/passwd",
    ],
)
def test_files_of_the_machine_are_not_there(path, process, sandbox):
    namespaces_or_skip(sandbox)
    if str(path) == "/home":
        packages = {p.split("/")[2] for p in (sys.base_prefix, *sandbox.packages) if p.startswith("/home/")}
        assert set(process.call("look", "os.listdir('/home')")) == {"student"} | packages
    else:
        assert process.call("look", f"os.path.exists({str(path)!r})") is False


def test_nothing_can_be_written_outside_of_the_own_folder(process, sandbox):
    namespaces_or_skip(sandbox)
    for path in (sys.base_prefix, "/usr", "/", *sandbox.packages):
        with pytest.raises(StudentError, match=r"Read-only|denied"):
            process.call("look", f"open({path + '/new'!r}, 'w')")
    assert process.call("look", "open('mine', 'w').write('x')") == 1


def test_there_is_no_network_and_there_are_no_other_processes(process, sandbox):
    namespaces_or_skip(sandbox)
    with pytest.raises(StudentError, match=r"unreachable|not permitted|refused"):
        process.call("look", "socket.create_connection(('1.1.1.1', 53), 2)")
    with pytest.raises(StudentError):
        process.call("look", "socket.getaddrinfo('example.org', 80)")
    assert process.call("look", "os.getpid()") == 1
    assert set(process.call("look", "[p for p in os.listdir('/proc') if p.isdigit()]")) <= {"1"}


def test_there_are_no_rights_to_be_had(process, sandbox):
    namespaces_or_skip(sandbox)
    status = process.call("look", "open('/proc/self/status').read()")
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert process.call("look", "os.getuid()") != 0
    new_user_namespace = "__import__('ctypes').CDLL(None).unshare(0x10000000)"
    assert process.call("look", new_user_namespace) == -1
    for call in ("os.chroot('/tmp')", "os.setuid(0)", "os.mknod('x', 0o20600, 259)"):
        with pytest.raises(StudentError):
            process.call("look", call)


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('ddimlib').NoiseSchedule",
        "__import__('ddimlib').ddim_step",
        "__import__('ddimlib.schedule')",
        "__import__('ddimlib.samplers')",
        "__import__('ddimlib.oracle')",
        "__import__('ddimlib.latents')",
        "__import__('ddimlib.timesteps')",
        "__import__('diffusers').DDIMScheduler",
        "__import__('classroom.checks')",
        "__import__('denoising_diffusion_pytorch').GaussianDiffusion",
    ],
)
def test_the_library_is_no_answer_key(expression, process):
    with pytest.raises(StudentError, match=r"not there while|No module|no attribute"):
        process.call("look", expression)


def test_no_other_package_that_is_shown_has_a_diffusion_sampler_in_it(sandbox):
    """Whatever is installed beside PyTorch: the names by which public code calls ᾱ must not be found."""
    for folder in sandbox.packages:
        search = ["grep", "-rlE", "--include=*.py", r"alphas_cumprod|DDIMScheduler", "."]
        hits = subprocess.run(search, cwd=folder, capture_output=True, text=True).stdout.splitlines()
        assert not {hit.split("/")[1] for hit in hits} - set(ANSWER_KEYS)
    library = next(sandbox.folder.glob("library"))
    assert (
        not subprocess.run(["grep", "-rlE", "abar|alpha_bar|ᾱ", library], capture_output=True, text=True)
        .stdout.replace(str(library / "ddimlib" / "problem_sets.py"), "")
        .strip()
    )


def test_a_process_that_gets_less_isolation_than_was_found_is_not_used(sandbox, monkeypatch):
    """The machine may run out of namespaces while it grades."""
    if sandbox.level == "process":
        pytest.skip("this machine gives nothing weaker")
    monkeypatch.setattr(sandbox, "strongest", "process")
    with pytest.raises(RuntimeError, match="only isolation 'process' was to be had"):
        Process(sandbox, PATIENCE)


def test_one_students_process_does_not_see_another(sandbox):
    first, second = Process(sandbox, PATIENCE), Process(sandbox, PATIENCE)
    try:
        for process in (first, second):
            process.run("import os, sys\ndef look(expression): return eval(expression)", "cell a")
        first.call("look", "open('answer', 'w').write('42')")
        first.call("look", "setattr(sys, 'answer', 42)")
        assert second.call("look", "os.path.exists('answer')") is False
        assert second.call("look", "hasattr(sys, 'answer')") is False
    finally:
        first.stop()
        second.stop()


def test_nothing_is_left_running_and_no_folder_is_left(tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Sandbox() as sandbox:
        process = Process(sandbox, PATIENCE)
        process.run(
            "import os, time\ndef f():\n    if os.fork() == 0:\n        os.setsid()\n        time.sleep(10**6)",
            "cell a",
        )
        process.call("f")
        if sandbox.level == "namespaces":  # out of the group, and no more to be ended with its parent
            process.run("import ctypes\nos.setsid()\nctypes.CDLL(None).prctl(1, 0, 0, 0, 0)", "cell b")
        process.stop()
        server = sandbox.server.pid
    assert list(tmp_path.iterdir()) == []
    assert not Path(f"/proc/{server}").exists()
    if sandbox.level == "namespaces":
        time.sleep(0.5)
        assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _bytes(p)]


def _bytes(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("level", ["user", "process"])
def test_what_is_left_without_namespaces(level):
    """A process of its own, its limits, and no answer keys."""
    with Sandbox(level) as weak:
        assert weak.level in ("user", "process")
        process = Process(weak, 4)
        process.run("import os\ndef look(expression): return eval(expression)", "cell a")
        process.run("def bomb():\n    while True:\n        try: os.fork()\n        except OSError: pass", "cell b")
        assert process.call("look", "os.listdir('.')") == []
        for expression in (
            "__import__('ddimlib').ddim_step",
            "__import__('diffusers')",
            "__import__('classroom.checks')",
        ):
            with pytest.raises(StudentError, match=r"not there while|No module"):
                process.call("look", expression)
        assert weak.level == "process" or process.call("look", "os.getuid()") != 0
        if weak.level == "user" or os.geteuid() != 0:  # root's processes cannot be counted
            with pytest.raises(Stopped):
                process.call("bomb")
        process.stop()
