"""What was handed in, and what of it is the student's; and the problem sets that it is compared with."""

import ast
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LARGEST = 20 * 2**20
"""Bytes of the largest notebook that is read."""

MOST_CODE = 200_000
"""Characters of code in a notebook; to parse two million took a minute, and a gigabyte of the grader's memory."""

_CANVAS = re.compile(r"(?P<name>[^_]+)_(?:late_)?(?P<id>\d+)_\d+_.+", re.IGNORECASE)
_MOODLE = re.compile(r"(?P<name>.+)_(?P<id>\d+)_assignsubmission_file_?")
_SET = re.compile(r"ps\d+")
_NOTEBOOK = re.compile(r"\.ipynb(\.txt|\.json)?$", re.IGNORECASE)  # some browsers append what they take it for


class UnreadableError(Exception):
    """A file that cannot be graded; says why and what to do."""


@dataclass
class Cell:
    """One cell of a notebook."""

    kind: str
    source: str
    grade_id: str = ""
    grade: bool = False
    solution: bool = False
    locked: bool = False
    points: float = 0.0


def read_cells(path: Path) -> list[Cell]:
    """The cells of a notebook, whatever else may be in the file.

    Raises:
        UnreadableError: when it is no notebook, or too large.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise UnreadableError(f"the file cannot be opened ({error.strerror}); hand in the notebook itself") from error
    with open(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise UnreadableError("this is not a file; hand in the notebook itself")
        if facts.st_size > LARGEST:
            size, most = facts.st_size / 2**20, LARGEST >> 20
            raise UnreadableError(
                f"the notebook has {size:.0f} MB, at most {most} are read; clear its outputs and hand it in again"
            )
        data = file.read(LARGEST + 1)
    return parse_cells(data)


def parse_cells(data: bytes) -> list[Cell]:
    """The cells of a notebook given as the bytes of its file; errors as in :func:`read_cells`."""
    try:
        cells = [_cell(c) for c in json.loads(data)["cells"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableError(
            "the file is damaged, or no Jupyter notebook (format 4); download it again and open it before handing it in"
        ) from error
    if sum(len(c.source) for c in cells if c.kind == "code") > MOST_CODE:
        raise UnreadableError(f"the notebook holds more than {MOST_CODE} characters of code; hand in what you wrote")
    return cells


def _cell(raw: dict[str, Any]) -> Cell:
    source = well_formed(raw["source"] if isinstance(raw["source"], str) else "".join(raw["source"]))
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    kind = raw["cell_type"] if raw["cell_type"] in ("code", "markdown") else "raw"
    marks = raw.get("metadata", {}).get("nbgrader", {})
    if not isinstance(marks, dict):
        marks = {}
    points = marks.get("points", 0)
    return Cell(
        kind,
        source,
        well_formed(str(marks.get("grade_id", ""))),
        marks.get("grade") is True,
        marks.get("solution") is True,
        marks.get("locked") is True,
        float(points) if isinstance(points, int | float) and 0 <= points < 10**6 else 0.0,
    )


def well_formed(text: str) -> str:
    """Text that can be written to a file: JSON lets through halves of characters, and file names wild bytes."""
    return text.encode(errors="replace").decode()


@dataclass
class Check:
    """A cell that checks something, for some points."""

    grade_id: str
    title: str
    source: str
    points: float
    own: list[str]
    """The names that are checked: those that the solution cell before it defines."""


@dataclass
class ProblemSet:
    """A problem set as its author wrote it, with solutions and hidden tests."""

    name: str
    cells: list[Cell]
    digest: str
    checks: list[Check] = field(default_factory=list)
    written: list[Cell] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "ProblemSet":
        data = path.read_bytes()
        problem_set = cls(path.stem, parse_cells(data), hashlib.sha256(data).hexdigest())
        own: list[str] = []
        fresh = True
        for cell in problem_set.cells:
            if cell.kind == "code" and cell.solution:
                own = ([] if fresh else own) + defined_names(cell.source)
                fresh = False
                problem_set.names += defined_names(cell.source)
            elif cell.kind == "code" and cell.grade:
                title = cell.source.splitlines()[0].lstrip("# ").removeprefix("Check: ")
                extra = re.findall(r"^# own: (.+)$", cell.source, re.MULTILINE)
                names = own + [name.strip() for line in extra for name in line.split(",")]
                problem_set.checks.append(Check(cell.grade_id, title, cell.source, cell.points, names))
                fresh = True
            elif cell.grade and cell.solution:
                problem_set.written.append(cell)
        return problem_set

    @property
    def setup(self) -> list[Cell]:
        """The cells that prepare what solutions and checks use; students cannot change them."""
        return [c for c in self.cells if c.kind == "code" and c.locked and not c.grade and not c.solution]

    @property
    def solutions(self) -> list[Cell]:
        return [c for c in self.cells if c.kind == "code" and c.solution]

    @property
    def points(self) -> float:
        return sum(check.points for check in self.checks) + sum(cell.points for cell in self.written)


def problem_sets(folder: Path) -> dict[str, ProblemSet]:
    """Every problem set under the folder of sources, by name."""
    return {
        path.stem: ProblemSet.read(path) for path in sorted(folder.glob("ps*/ps*.ipynb")) if _SET.fullmatch(path.stem)
    }


def defined_names(source: str) -> list[str]:
    """The functions, classes and variables that a cell defines at its top level."""
    names = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return names


def hidden_tests_removed(source: str) -> str:
    """A check as it stands in the students' notebook."""
    return re.sub(r"^ *### BEGIN HIDDEN TESTS\n.*?### END HIDDEN TESTS *\n?", "", source, flags=re.S | re.M).rstrip(
        "\n"
    )


def without_magics(source: str) -> str:
    """The cell with IPython's own commands (%…, !…) left out, line by line; a cell magic (%%…) leaves nothing, as a rule."""
    if match := re.match(r"\s*%%(\w*).*\n?", source):
        if match[1] not in ("time", "capture", "prun"):  # below these, the cell is Python, and defines what it defines
            return ""
        source = "\n" * match[0].count("\n") + source[match.end() :]
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)


def definitions(source: str) -> str:
    """What is run of a cell that is no solution cell: imports, functions, classes, plain values; no plot, no training.

    An import that fails here, as of a package that the grader's machine lacks, does not take the rest of the cell with it.
    A cell that is not Python, or nested too deep, is returned as it is, to fail where it is run.
    """
    kept = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    try:
        tree = ast.parse(without_magics(source))
        parts = []
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                parts.append(f"try:\n    {ast.unparse(node)}\nexcept ImportError:\n    pass")
            elif isinstance(node, kept) or (isinstance(node, ast.Assign) and _is_plain(node.value)):
                parts.append(ast.unparse(node))
        return "\n".join(parts)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return source


def computed_names(source: str) -> set[str]:
    """The variables that a cell computes, and that are therefore not there if only its definitions are run."""
    try:
        body = ast.parse(without_magics(source)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    computed = [node for node in body if isinstance(node, ast.Assign) and not _is_plain(node.value)]
    return {
        part.id
        for node in computed
        for target in node.targets
        for part in ast.walk(target)
        if isinstance(part, ast.Name)
    }


def _is_plain(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return isinstance(node, ast.Lambda)
    return True


@dataclass
class Submission:
    """A file that was handed in.

    Attributes:
        student: the name as it stands in the file's or folder's name.
        key: the same as a name that is safe for files, unique to `student`.
        identifier: the number that Canvas or Moodle gave the student, or an empty text.
    """

    path: Path
    student: str
    key: str
    identifier: str = ""
    source: str = ""


def key_of(student: str) -> str:
    """A file name for a student: letters, digits and hyphens, and a piece of a digest where something had to be left out."""
    safe = re.sub(r"[^A-Za-z0-9]+", "-", student).strip("-")[:40]
    return (
        safe
        if safe == student
        else f"{safe or 'student'}-{hashlib.sha256(student.encode(errors='surrogateescape')).hexdigest()[:8]}"
    )


def submissions(folder: Path) -> Iterator[Submission]:
    """Every notebook under a folder, as Canvas, Moodle or nbgrader put them there, or simply one for each student.

    `student.ipynb`, `student/anything.ipynb`, `ps1/student.ipynb`, `student/ps1/ps1.ipynb`, `name_123_456_anything.ipynb`
    (Canvas) and `Name_123_assignsubmission_file/anything.ipynb` (Moodle) are all understood.
    """
    for directory, folders, files in os.walk(folder):  # does not follow links
        folders[:] = sorted(f for f in folders if f not in (".ipynb_checkpoints", "__MACOSX"))
        links = [f for f in folders if Path(directory, f).is_symlink()]  # refused where they are read
        for name in sorted([*files, *links]):
            if not _NOTEBOOK.search(name) or name.startswith("._"):
                continue
            path = Path(directory, name)
            parts = list(path.relative_to(folder).parts)
            if len(parts) > 1 and _SET.fullmatch(parts[0]):
                parts = parts[1:]
            label = parts[0] if len(parts) > 1 else _NOTEBOOK.sub("", parts[0])
            match = (_MOODLE if len(parts) > 1 else _CANVAS).fullmatch(label)
            student, identifier = (match["name"], match["id"]) if match else (label, "")
            system = ("moodle" if len(parts) > 1 else "canvas") if match else ""
            student = os.fsencode(student).decode(errors="replace")
            yield Submission(path, student, key_of(f"{student} {identifier}".strip()), identifier, system)


def left_out(folder: Path) -> list[str]:
    """Files under the folder that are no notebooks by their names, so that a teacher can see that one was meant to be."""
    taken = {submission.path for submission in submissions(folder)}
    return [
        well_formed(str(path.relative_to(folder)))
        for path in sorted(folder.rglob("*"))
        if path not in taken
        and not path.is_dir()
        and not any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(folder).parts)
    ]


def which_problem_set(cells: list[Cell], known: dict[str, ProblemSet]) -> str:
    """The problem set that a notebook is an answer to: by the marks on its cells, or else by what it defines.

    Raises:
        UnreadableError: when it is none of them.
    """
    marks = [c.grade_id.split("-")[0] for c in cells]
    defined = {
        name
        for c in cells
        if c.kind == "code"
        for name in re.findall(r"^def (\w+)|^(\w+) =", c.source, re.M)
        for name in name
    }
    counts = {name: (marks.count(name), len(defined & set(ps.names))) for name, ps in known.items()}
    best = max(counts, key=lambda name: counts[name], default="")
    if not best or counts[best] == (0, 0):
        raise UnreadableError(
            f"this notebook is none of {', '.join(known)}: hand in the notebook that you were given, filled in"
        )
    return best
