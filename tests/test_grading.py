"""`make grade`: submissions that try to break it or to get points for nothing, interruptions, and the reports."""

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from students import SETS, filled, released

from classroom import __main__ as program
from classroom import reports
from classroom.__main__ import main
from classroom.course import ROOT
from classroom.notebooks import key_of, submissions
from classroom.sandbox import Sandbox

# Submissions that try to break the grader, or to get points for nothing. All are graded in one go, as `make grade` does it.

HALF = {c.grade_id: c.source for c in SETS["ps1"].solutions[:4]}
LAST = "ps1-seeded"  # the part that most of them spoil: one point
TAKE = "torch.stack(drawn)"


def spoilt(*lines):
    """The solutions, but for the function of one part, which has these lines."""
    return filled("ps1", [(LAST, f"    return {TAKE}", "\n".join(f"    {line}" for line in lines))])


def with_cell(source, notebook=None):
    """The solutions, and before them a cell that the student added, run as a solution cell would be."""
    notebook = notebook or filled("ps1")
    first = next(c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id") == "ps1-one-step")
    first.source = source + "\n\n" + first.source
    return notebook


def added_cell(source):
    """The solutions, and a cell that the student added."""
    notebook = filled("ps1")
    notebook.cells.insert(3, nbformat.v4.new_code_cell(source))
    return notebook


def without_checks(notebook, edit):
    """Every check deleted, or edited to pass."""
    if edit:
        for cell in notebook.cells:
            if cell.metadata.get("nbgrader", {}).get("grade"):
                cell.source = "pass" if cell.cell_type == "code" else cell.source
    else:
        notebook.cells = [c for c in notebook.cells if not c.metadata.get("nbgrader", {}).get("grade")]
    return notebook


MONKEY = """
import builtins, torch
torch.allclose = torch.equal = lambda *a, **k: True
torch.Tensor.__sub__ = torch.Tensor.sub = torch.Tensor.__rsub__ = lambda a, b: torch.zeros(())
torch.Tensor.all = torch.Tensor.isfinite = lambda *a: True
builtins.AssertionError = builtins.abs = builtins.Exception = lambda *a: None
import ddimlib.problem_sets
ddimlib.problem_sets.compare = ddimlib.problem_sets.fresh = lambda *a, **k: None
def compare(*a, **k): pass
def fresh(): return None
"""

HARD_CODED = {
    "ps1-one-step": "import torch\ndef one_step(x, beta, z):\n    return 0.8 * x + 0.6 * z",
    "ps1-products": "def running_products(betas):\n    return torch.tensor([1, 0.64, 0.16], dtype=torch.float64)",
    "ps1-jump": "def noisy(images, times, noise, abar):\n    a = torch.tensor([0.8, 0.6])[times - 2].reshape(-1, 1, 1, 1)\n"
    "    return a * images + torch.tensor([0.6, 0.8])[times - 2].reshape(-1, 1, 1, 1) * noise",
    "ps1-posterior": "def step_back(x_0, x_t, t, abar):\n    return 0.8*0.75/0.84*x_0 + 0.5*0.36/0.84*x_t, 0.36/0.84*0.75",
    "ps1-ancestral": "def ancestral(x, eps, t, z, abar):\n"
    "    return 2*x - 2*0.75/0.84**0.5*eps + (0.75**0.5*z if t > 1 else 0)",
}

# The reference's functions stand for the student's while other parts are checked; this one keeps asking them.
ASK = """
def seeded_noise(seeds, shape):
    import gc
    from classroom.worker import Worker
    worker = next(o for o in gc.get_objects() if isinstance(o, Worker))
    for number in range(10):
        try:
            answer = worker.ask(number, (seeds, shape), {})
        except RuntimeError:
            continue
        if isinstance(answer, torch.Tensor) and answer.shape == (len(seeds), *shape):
            return answer
"""

# name: (what is handed in, points lost of 24 or None for no grade, a piece of the feedback)
HOSTILE = {
    "output": (
        with_cell("print('x' * 10**8)\nimport sys, os\nsys.stderr.write('y' * 10**8)\nos.write(1, b'z' * 10**8)"),
        0,
        "",
    ),
    "exception": (spoilt("raise RuntimeError('<script>alert(1)</script>')"), 1, "&lt;script&gt;"),
    "exit": (spoilt("import os", "os._exit(0)"), 1, "process ended"),
    "exit-politely": (spoilt("raise SystemExit"), 1, "SystemExit"),
    "killed": (spoilt("import os, signal", "os.kill(os.getpid(), signal.SIGSEGV)", "os.abort()"), 1, "process ended"),
    "memory": (spoilt("return torch.ones(len(seeds), 10**11)"), 1, "raised"),
    "memory-shared": (
        spoilt(
            "import mmap",
            "parts = []",
            "while len(parts) < 400:  # 25 GB, that no limit on a process's own data counts",
            "    parts.append(mmap.mmap(-1, 1 << 26))",
            "return torch.zeros(())",
        ),
        1,
        "Cannot allocate memory",
    ),
    "swollen": (spoilt("return torch.zeros(10**8)"), 1, "too large"),
    "swollen-a-little": (spoilt("return torch.zeros(5 * 10**6)"), 1, "more than 16 MB"),
    "asks-for-too-much": (  # of the reference of another part, which must not be the grader's to pay for
        filled("ps1", [("ps1-loss", "    return", "    seeded_noise([0], (10**10,))\n    return")]),
        2,
        "memory",
    ),
    "broadcast": (  # each answer is small; their difference, which the check takes, has 14 GB
        filled(
            "ps1",
            [
                (
                    "ps1-ancestral",
                    "    alpha =",
                    "    if x.shape == (3, 1, 4, 4):\n        n = 60_000\n"
                    "        return torch.zeros(n, 1) if z.any() else torch.zeros(1, n)\n    alpha =",
                )
            ],
        ),
        2,
        "does not fit the check",
    ),
    "half-a-character": (spoilt("raise ValueError(chr(0xD800) + chr(0))"), 1, "ValueError: ?"),
    "half-a-character-in-the-source": (with_cell("x = 'HALF'"), 0, ""),
    "nested-in-a-cell-of-its-own": (added_cell("def f():\n    return 1" + "+1" * 900), 0, ""),
    "checks-deleted": (without_checks(filled("ps1", [(LAST, TAKE, "None")]), edit=False), 1, "the original was used"),
    "checks-edited": (without_checks(filled("ps1", [(LAST, TAKE, "None")]), edit=True), 1, "the original was used"),
    "checks-edited-nothing-done": (without_checks(released("ps1"), edit=True), 24, "Not written yet"),
    "monkey": (with_cell(MONKEY, without_checks(released("ps1"), edit=True)), 24, ""),
    "hard-coded": (filled("ps1", answers=HARD_CODED), 23, "random"),
    "everything-equal": (
        spoilt(
            "class Equal:",
            "    def __getattr__(self, name): return self",
            "    def __eq__(self, other): return True",
            "return Equal()",
        ),
        1,
        "Equal",
    ),
    "forged-answer": (
        spoilt(
            "import os",
            "for fd in range(3, 64):",
            "    try: os.write(fd, b'\\0' * 7 + b'\\2' + b'\\0' * 8 + b'{}')",
            "    except OSError: pass",
        ),
        1,
        "cannot be read",
    ),
    "garbage-answer": (
        spoilt(
            "import os", "for fd in range(3, 64):", "    try: os.write(fd, b'\\xff' * 4096)", "    except OSError: pass"
        ),
        1,
        "cannot be read",
    ),
    "library": (
        spoilt("from ddimlib import SeededNoise", "return SeededNoise(seeds).draw(shape)"),
        1,
        "not there while your work is graded",
    ),
    "asks-the-reference": (
        filled("ps1", answers={c.grade_id: c.source for c in SETS["ps1"].solutions} | {LAST: ASK}),
        1,
        "",
    ),
    "syntax-error": (filled("ps1", [("ps1-one-step", "return", "return (")]), 2, "SyntaxError"),
    "renamed-function": (filled("ps1", [(LAST, "def seeded_noise", "def my_noise")]), 1, "renamed or deleted"),
}

FORK_BOMB = """
def seeded_noise(seeds, shape):
    import os
    while True:
        try: os.fork()
        except OSError: pass
"""

# These wait until their time is over. They are graded apart, with little of it, and without the training, which could need
# more on a busy machine. name: (what stands in the cells of some parts, a piece of the feedback)
HANGING = {
    "endless-function": ({LAST: "def seeded_noise(seeds, shape):\n    while True: pass"}, "longer than 5 seconds"),
    "endless-cell": ({LAST: "while True: pass"}, "longer than 5 seconds; only its definitions"),
    "fork-bomb": ({LAST: FORK_BOMB}, "longer than 5 seconds"),
}

FILES = {
    "truncated": (nbformat.writes(released("ps1"))[:5000].encode(), "damaged"),
    "empty": (b"", "damaged"),
    "no-notebook": (b'{"a": 1}', "damaged"),
    "nested": (b'{"cells": ' + b"[" * 10**6, "damaged"),
    "huge": (b" " * (21 * 2**20), "21 MB"),
    "much-code": (nbformat.writes(with_cell("x = 1\n" * 40_000)).encode(), "characters of code"),
    "another-notebook": (
        nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])).encode(),
        "none of",
    ),
}
STRANGE = [
    "..%2F..%2Fetc%2Fpasswd",
    "=cmd|' -C calc'!A0",
    "<img src=x onerror=alert(1)>",
    "...",
    "-rf",
    "名前",
    "a" * 120,
]


def grade_folder(folder, out, isolation, *options, seconds=20):
    """Grade a folder at the level that this machine gives."""
    limits = ["--quiet", "--seconds", str(seconds), "--total", "120", "--isolation", isolation]
    return main(["grade", str(folder), "--out", str(out), *limits, *options])


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def classroom(tmp_path_factory, sandbox):
    """A folder of submissions of every kind, graded."""
    folder, out = tmp_path_factory.mktemp("submissions"), tmp_path_factory.mktemp("graded") / "grading"
    for name, notebook in {"reference": filled("ps1"), "untouched": released("ps1")}.items():
        nbformat.write(notebook, folder / f"{name}.ipynb")
    nbformat.write(filled("ps1", answers=HALF), folder / "half.ipynb")
    for name, (notebook, _, _) in HOSTILE.items():
        (folder / f"{name}.ipynb").write_text(nbformat.writes(notebook).replace("HALF", r"\ud800"))
    for name, (data, _) in FILES.items():
        (folder / f"{name}.ipynb").write_bytes(data)
    for name in STRANGE:
        (folder / name).mkdir()
        nbformat.write(filled("ps1", answers={}), folder / name / "ps1.ipynb")
    (folder / "renamed").mkdir()
    nbformat.write(filled("ps1"), folder / "renamed" / "Copy of homework (1).ipynb")
    (folder / "twice").mkdir()
    nbformat.write(released("ps1"), folder / "twice" / "old.ipynb")
    nbformat.write(filled("ps1"), folder / "twice" / "a-new-one.ipynb")
    os.utime(folder / "twice" / "old.ipynb", (1, 1))
    (folder / "saved").mkdir()
    nbformat.write(filled("ps1"), folder / "saved" / "ps1.ipynb.txt")
    (folder / "saved" / "figure.png").write_bytes(b"")
    notebook = filled("ps1")
    for cell in notebook.cells:
        cell.metadata.setdefault("nbgrader", {})["points"] = 10**400
    (folder / "many-points.ipynb").write_text(nbformat.writes(notebook))
    (folder / "folder-link.ipynb").symlink_to("/etc")
    (folder / "link.ipynb").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe.ipynb")
    begin = time.monotonic()
    assert grade_folder(folder, out, sandbox.level) == 0
    print(f"graded in {time.monotonic() - begin:.0f} s")
    rows = {row["Student"].removeprefix("'"): row for row in rows_of(out / "grades.csv")}
    return folder, out, rows


def page(out, student):
    return (out / "feedback" / f"{key_of(student)}.html").read_text()


def test_right_untouched_and_half_right_get_what_they_should(classroom):
    _, out, rows = classroom
    assert rows["    Points Possible"]["ps1"] == "26"
    assert rows["reference"]["ps1"] == "24"  # and two for the written answer, by hand
    assert "1 written answer will be read" in page(out, "reference")
    assert rows["untouched"]["ps1"] == "0"
    assert rows["half"]["ps1"] == "11"


@pytest.mark.parametrize("name", HOSTILE)
def test_each_hostile_submission_costs_its_own_points_only(name, classroom):
    _, out, rows = classroom
    _, lost, said = HOSTILE[name]
    text = page(out, name)
    assert float(rows[name]["ps1"]) == 24 - lost, text
    assert said in text


def test_whoever_hangs_loses_no_more_than_the_points_of_that_part(tmp_path, sandbox):
    """An endless loop in a function and in a cell, and processes without end."""
    (tmp_path / "in").mkdir()
    for name, (answer, _) in HANGING.items():
        nbformat.write(filled("ps1", answers=HALF | answer), tmp_path / "in" / f"{name}.ipynb")
    assert grade_folder(tmp_path / "in", tmp_path / "out", sandbox.level, "--workers", "3", seconds=5) == 0
    rows = {row["Student"]: row for row in rows_of(tmp_path / "out" / "grades.csv")}
    for name, (_, said) in HANGING.items():
        assert rows[name]["ps1"] == "11", page(tmp_path / "out", name)
        assert said in page(tmp_path / "out", name)


@pytest.mark.parametrize("name", [*FILES, "link", "folder-link", "pipe"])
def test_a_file_that_cannot_be_graded_is_told_so(name, classroom):
    _, out, rows = classroom
    assert rows[name]["ps1"] == ""
    assert "Not graded" in page(out, name)
    assert FILES.get(name, (b"", "hand in the notebook itself"))[1] in page(out, name)


@pytest.mark.parametrize("name", STRANGE)
def test_strange_names_are_names(name, classroom):
    folder, out, rows = classroom
    row = rows[name]
    assert row["ps1"] == "0"
    assert "<img" not in page(out, name)
    assert not name.startswith(("=", "-")) or f"'{name}" in (out / "grades.csv").read_text()
    everything = {p.name for p in [*folder.parent.iterdir(), *out.parent.iterdir()]}
    assert "etc" not in everything


def test_keys_are_unique_and_safe():
    names = [*STRANGE, "anna b", "anna-b", "Anna-b", "a/b", "..", "a" * 41]
    keys = [key_of(name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(
        set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") and key for key in keys
    )


def test_a_renamed_file_is_recognised_and_the_newest_of_two_counts(classroom):
    _, out, rows = classroom
    assert rows["renamed"]["ps1"] == "24"
    assert rows["saved"]["ps1"] == "24"
    assert rows["many-points"]["ps1"] == "24"
    assert rows["twice"]["ps1"] == "24"
    assert "the one changed last, a-new-one.ipynb, counts" in page(out, "twice")


def test_moodle_gets_a_worksheet_with_comments(classroom):
    _, out, _ = classroom
    rows = {row["Full name"]: row for row in rows_of(out / "grades-moodle-ps1.csv")}
    assert rows["half"]["Grade"] == "11"
    assert rows["half"]["Maximum Grade"] == "26"
    assert "Last modified (grade)" in rows["half"]  # Moodle refuses a file without this column
    assert "Not written yet" in rows["half"]["Feedback comments"]


def test_grading_goes_on_where_it_was_interrupted(classroom, sandbox, capsys):
    """What has been graded is not graded again; what is missing or has changed is, and the reports are the same."""
    folder, out, _ = classroom
    before = (out / "grades.csv").read_text()
    stored = sorted((out / "results").glob("*.json"))
    times = {path: path.stat().st_mtime_ns for path in stored}
    stored[0].unlink()
    stored[1].write_text('{"half a res')
    (out / "grades.csv").unlink()
    assert grade_folder(folder, out, sandbox.level) == 0
    text = capsys.readouterr().out
    assert f"{len(stored) - 2} of {len(stored)} were graded before" in text
    assert "left out, as their names do not end with .ipynb: 'saved/figure.png'" in text
    assert (out / "grades.csv").read_text() == before
    assert [p for p in stored if p.stat().st_mtime_ns == times.get(p)] == stored[2:]


def test_it_stops_when_told_to_and_goes_on_after_any_end(tmp_path, sandbox):
    """One submission is graded and another hangs when the signal comes: the first is kept, and nobody waits for the second."""
    folder, out, scratch = tmp_path / "in", tmp_path / "out", tmp_path / "scratch"
    folder.mkdir(), scratch.mkdir()
    nbformat.write(filled("ps3"), folder / "anna.ipynb")
    nbformat.write(spoilt("while True: pass"), folder / "bert.ipynb")
    command = [sys.executable, "-m", "classroom", "grade", str(folder), "--out", str(out), "--quiet", "--total", "300"]
    command += ["--isolation", sandbox.level, "--workers", "2", "--seconds"]
    environment = os.environ | {"TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"}
    for number in (signal.SIGTERM, signal.SIGKILL):  # SIGTERM is made to do what Ctrl-C does
        process = subprocess.Popen([*command, "250"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        if number == signal.SIGTERM:
            while not list((out / "results").glob("anna*")):
                assert process.poll() is None
                time.sleep(0.1)
        else:
            first = process.stdout.readline(), process.stdout.readline()
            assert "1 of 2 were graded before" in "".join(first)
        process.send_signal(number)
        text, _ = process.communicate(timeout=200)
        if number == signal.SIGKILL:
            assert process.returncode == -number
        else:
            assert process.returncode == 130
            assert "Interrupted. What is graded is kept" in text
            assert list(scratch.glob("grading-*")) == []
    assert len(list((out / "results").iterdir())) == 1
    finish = [*command, "6"]
    assert subprocess.run(finish, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL).returncode == 0
    rows = {row["Student"]: row for row in rows_of(out / "grades.csv")}
    assert (rows["anna"]["ps3"], rows["bert"]["ps1"]) == ("20", "23")


def test_a_private_variant_is_what_is_released_and_graded(tmp_path, sandbox, monkeypatch):
    """With --source, as the teacher's page says: another name and another formula, in a folder that is named from here."""
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(ROOT / "assignments" / "source" / "ps3" / "ps3.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("from_line", "from_curve")
    Path("mine/ps3").mkdir(parents=True), Path("in").mkdir()
    nbformat.write(notebook, "mine/ps3/ps3.ipynb")
    assert main(["release", "--source", "mine", "--out", "released"]) == 0
    text = Path("released/ps3/ps3.ipynb").read_text()
    assert "def from_curve(line, s)" in text
    assert "from_line" not in text
    answers = {c.grade_id: c.source.replace("from_line", "from_curve") for c in SETS["ps3"].solutions}
    nbformat.write(filled("ps3", answers=answers), "in/anna.ipynb")
    nbformat.write(filled("ps3"), "in/bert.ipynb")
    assert grade_folder(Path("in"), Path("out"), sandbox.level, "--source", "mine") == 0
    assert [row["ps3"] for row in rows_of("out/grades.csv")] == ["26", "20", "18"]


def test_what_failed_by_the_graders_fault_is_graded_again(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("no space left")

    monkeypatch.setattr(program, "grade", broken)
    nbformat.write(released("ps1"), tmp_path / "anna.ipynb")
    (submission,) = submissions(tmp_path)
    result = program.grade_one(submission, SETS, {"ps1": None}, None, 1, 1)
    assert "The grader failed (OSError: no space left)" in result["message"]
    reports.write_text(tmp_path / "stored.json", json.dumps(result | {"fingerprint": "x"}))
    assert program._stored(tmp_path / "stored.json") is None
    reports.write_text(tmp_path / "stored.json", json.dumps({"message": "", "fingerprint": "x"}))
    assert program._stored(tmp_path / "stored.json")


class NoGradebook:
    """Stands in for nbgrader's, which takes seconds."""

    def __init__(self, *_):
        pass

    def record(self, *_):
        pass

    def scores(self, *_):
        return 3.0, 0


def test_reports_are_never_half_written(tmp_path, monkeypatch):
    """Ctrl-C in the middle of each write and before each file takes its place: each is as it was, or as it becomes."""
    monkeypatch.setattr(program, "Course", NoGradebook)
    (tmp_path / "in").mkdir()
    for name in ("anna", "bert"):
        nbformat.write(released("ps1"), tmp_path / "in" / f"{name}.ipynb")

    def write(out, what):
        verdict = {
            "grade_id": "ps1-loss-check",
            "title": "the loss",
            "points": 0.0,
            "most": 2.0,
            "message": what * 9999,
        }
        graded = [
            (s.key, s, {"student": s.student, "identifier": "", "file": s.path.name, "problem_set": "ps1", "message": "",
                        "notes": [], "verdicts": [verdict], "remarks": [], "errors": {}, "most": 26.0, "written": 1,
                        "fingerprint": what})
            for s in submissions(tmp_path / "in")
        ]  # fmt: skip
        out.mkdir(exist_ok=True)
        program.write_reports(graded, SETS, out, argparse.Namespace(quiet=True, roster=None, source=None))

    def contents(out):
        return {p.relative_to(out): p.read_text() for p in out.rglob("[!.]*") if p.is_file()}

    write(tmp_path / "old", "old"), write(tmp_path / "new", "new")
    old, new = contents(tmp_path / "old"), contents(tmp_path / "new")
    assert len(old) == 5
    really = {"write_text": Path.write_text, "replace": Path.replace}
    for stop in range(100):
        count = iter(range(1000))

        def write_text(path, text, *args, stop=stop, count=count, **kwargs):
            halt = next(count) == stop
            really["write_text"](path, text[: len(text) // 2] if halt else text, *args, **kwargs)
            if halt:
                raise KeyboardInterrupt

        def replace(path, target, stop=stop, count=count):
            if next(count) == stop:
                raise KeyboardInterrupt
            return really["replace"](path, target)

        out = tmp_path / f"out-{stop}"
        shutil.copytree(tmp_path / "old", out)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "write_text", write_text)
            patched.setattr(Path, "replace", replace)
            try:
                write(out, "new")
                break
            except KeyboardInterrupt:
                pass
        for name, text in contents(out).items():
            assert text in (old[name], new[name]) or (name.name == "recorded.json" and json.loads(text)), name
        write(out, "new")
        assert contents(out) == new
    assert 10 < stop < 99


def test_ctrl_c_in_the_gradebook_is_no_error_of_nbgraders():
    from classroom.course import _checked

    with pytest.raises(KeyboardInterrupt):
        _checked({"success": False, "error": "Traceback (most recent call last):\n  …\nKeyboardInterrupt\n"}, "")


def test_points_given_by_hand_are_kept_and_counted(classroom, sandbox):
    from nbgrader.api import Gradebook

    folder, out, _ = classroom
    with Gradebook(f"sqlite:///{out / 'course' / 'gradebook.db'}") as book:
        mark = book.find_grade("ps1-words", "ps1", "ps1", "reference")
        mark.manual_score, mark.needs_manual_grade = 1.5, False
        book.db.commit()
    assert grade_folder(folder, out, sandbox.level) == 0
    rows = {row["Student"]: row for row in rows_of(out / "grades.csv")}
    assert rows["reference"]["ps1"] == "25.5"


def test_the_results_are_for_the_teacher_alone(classroom):
    _, out, _ = classroom
    assert out.stat().st_mode & 0o077 == 0


def test_a_machine_without_namespaces_is_refused_unless_that_is_accepted(tmp_path, monkeypatch, capsys):
    nbformat.write(released("ps1"), tmp_path / "anna.ipynb")
    real = Sandbox.__init__

    def weak(self, strongest="namespaces"):
        real(self, "process")

    monkeypatch.setattr(Sandbox, "__init__", weak)
    assert grade_folder(tmp_path, tmp_path / "out", "namespaces") == 3
    assert "ISOLATION=process" in capsys.readouterr().out
    assert not (tmp_path / "out" / "grades.csv").exists()
    monkeypatch.chdir(tmp_path)  # and a folder that is named from here, as GRADES=grading is
    assert grade_folder(Path("."), Path("out"), "process") == 0
    assert rows_of(tmp_path / "out" / "grades.csv")[1]["ps1"] == "0"


# Names of files, as learning platforms give them


@pytest.mark.parametrize(
    ("path", "student", "identifier"),
    [
        ("anna.ipynb", "anna", ""),
        ("anna/ps1.ipynb", "anna", ""),
        ("ps1/anna.ipynb", "anna", ""),
        ("ps1/anna/x.ipynb", "anna", ""),
        ("anna/ps1/ps1.ipynb", "anna", ""),
        ("curiemarie_4711_900123_ps1.ipynb", "curiemarie", "4711"),
        ("curiemarie_LATE_4711_900123_ps1-2.ipynb", "curiemarie", "4711"),
        ("Marie Curie_4711_assignsubmission_file_/ps1.ipynb", "Marie Curie", "4711"),
        ("Marie Curie_4711_assignsubmission_file/ps1.ipynb", "Marie Curie", "4711"),
    ],
)
def test_whose_file_it_is(path, student, identifier, tmp_path):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text("{}")
    (found,) = submissions(tmp_path)
    assert (found.student, found.identifier) == (student, identifier)


def test_names_and_numbers_come_from_the_roster(tmp_path):
    students = [
        {"student": "curiemarie", "identifier": "4711", "scores": {"ps1": 20.0}},
        {"student": "meitner", "identifier": "", "scores": {"ps1": 9.5}},
    ]
    roster = [{"Student": "Curie, Marie", "ID": "4711", "SIS User ID": "s1", "SIS Login ID": "mc", "Section": "A"}]
    table = reports.canvas_table(students, {"ps1": 26}, roster)
    assert table.splitlines()[0] == "Student,ID,SIS User ID,SIS Login ID,Section,ps1"
    assert '"Curie, Marie",4711,s1,mc,A,20' in table
    assert "meitner,,,meitner,,9.5" in table
