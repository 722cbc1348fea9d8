"""nbgrader: it makes the notebooks that students get, and keeps the gradebook.

What it does not do here is run students' code: its own executor would do so beside the hidden tests. The verdicts come from
:mod:`classroom.checks`, and are put into the notebook where the executor's results would stand.
"""

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any, ClassVar

import nbformat
from nbgrader.api import Gradebook, MissingEntry
from nbgrader.apps import NbGraderAPI
from nbgrader.converters import Autograde
from nbgrader.preprocessors import NbGraderPreprocessor
from sqlalchemy.exc import SAWarning
from traitlets.config import Config

from classroom.notebooks import Cell, ProblemSet

# nbgrader starts `alembic` by name, when it makes a gradebook: find it beside Python.
os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])

ROOT = Path(__file__).resolve().parent.parent
ASSIGNMENTS = ROOT / "assignments"
RELEASED = ROOT / "book" / "problem_sets"


class CourseError(Exception):
    """nbgrader could not do what it was asked to; says what it said."""


def configuration(**settings: dict[str, Any]) -> Config:
    """assignments/nbgrader_config.py, with some settings replaced."""
    config = Config()
    text = (ASSIGNMENTS / "nbgrader_config.py").read_text()
    exec(compile(text, "nbgrader_config.py", "exec"), {"get_config": lambda: config})
    config.CourseDirectory.root = str(ASSIGNMENTS)
    for name, values in settings.items():
        for key, value in values.items():
            setattr(config[name], key, value)
    return config


def release(names: list[str], folder: Path, scratch: Path, source: Path = ASSIGNMENTS / "source") -> None:
    """Write the notebooks that students get, without solutions and hidden tests, to folder/NAME/NAME.ipynb.

    Args:
        names: of the problem sets.
        folder: where to.
        scratch: a folder for the gradebook that nbgrader keeps on the way.
        source: the folder of the problem sets with solutions and hidden tests.
    """
    folder = folder.resolve()
    course = {
        "source_directory": str(source.resolve()),
        "release_directory": str(folder),
        "db_url": f"sqlite:///{scratch / 'gradebook.db'}",
    }
    api = NbGraderAPI(config=configuration(CourseDirectory=course))
    for name in names:
        _checked(api.generate_assignment(name, force=True, create=True), f"release of {name}")
        for path in (folder / name).glob("*.ipynb"):
            _normalise(path)


def _normalise(path: Path) -> None:
    """The same file from every version of the tools and at every time."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = nbformat.from_dict(
        {k: v for k, v in notebook.metadata.items() if k in ("kernelspec", "language_info")}
    )
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    nbformat.write(notebook, path)


class Replay(NbGraderPreprocessor):
    """Stands in for nbgrader's executor: a check that failed gets its message as an error, one that passed gets nothing."""

    verdicts: ClassVar[dict[str, str]] = {}

    def preprocess_cell(self, cell: Any, resources: Any, index: int) -> tuple[Any, Any]:
        message = self.verdicts.get(cell.metadata.get("nbgrader", {}).get("grade_id", ""), "")
        if cell.cell_type == "code":
            cell.outputs = []
            if message:
                cell.outputs = [
                    nbformat.v4.new_output("error", ename="CheckFailed", evalue=message, traceback=[message])
                ]
        return cell, resources


class Course:
    """A gradebook of nbgrader's, and the folders that its grading page (formgrader) reads.

    Args:
        folder: where it is kept.
        sets: the problem sets.
        source: their folder.
    """

    def __init__(self, folder: Path, sets: dict[str, ProblemSet], source: Path = ASSIGNMENTS / "source") -> None:
        self.folder = folder = folder.resolve()  # nbgrader changes the working directory
        folder.mkdir(parents=True, exist_ok=True)
        others = [p for p in Autograde.autograde_preprocessors.default() if p.__name__ != "Execute"]
        course = {"root": str(folder), "source_directory": str(source.resolve()), "release_directory": "release",
                  "db_url": f"sqlite:///{folder / 'gradebook.db'}"}  # fmt: skip
        self.config = configuration(
            CourseDirectory=course,
            Autograde={"autograde_preprocessors": [Replay, *others]},
            OverwriteCells={"add_missing_cells": True},
        )
        self.api = NbGraderAPI(config=self.config)
        logging.getLogger("traitlets").setLevel(logging.ERROR)
        for name in sets:
            _checked(self.api.generate_assignment(name, force=True, create=True), f"reading {name}")
        lines = [
            "c = get_config()",
            f"c.CourseDirectory.root = {str(folder)!r}",
            f"c.CourseDirectory.source_directory = {course['source_directory']!r}",
        ]
        (folder / "nbgrader_config.py").write_text("\n".join(lines) + "\n")

    def record(self, key: str, problem_set: ProblemSet, handed_in: list[Cell], verdicts: dict[str, str]) -> None:
        """Put one submission and its verdicts into the gradebook.

        Args:
            key: the student.
            problem_set: what was answered.
            handed_in: the cells of the student's notebook.
            verdicts: the message of each check that failed, by the check's grade_id.
        """
        path = self.folder / "submitted" / key / problem_set.name / f"{problem_set.name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(merged(self.folder / "release" / problem_set.name / path.name, handed_in), path)
        Replay.verdicts = verdicts
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SAWarning)  # of nbgrader's own making, and nothing for a teacher
            _checked(self.api.autograde(problem_set.name, key, force=True, create=True), f"the gradebook, for {key}")

    def scores(self, key: str, name: str) -> tuple[float, int] | None:
        """Points so far, with those that a teacher gave by hand, and the number of answers that wait to be read."""
        with Gradebook(self.config.CourseDirectory.db_url) as book:
            try:
                submission = book.find_submission(name, key)
            except MissingEntry:
                return None
            waiting = sum(g.needs_manual_grade for notebook in submission.notebooks for g in notebook.grades)
            return float(submission.score), int(waiting)


def merged(released: Path, handed_in: list[Cell]) -> nbformat.NotebookNode:
    """The released notebook with the student's answers in it: nothing else of a stranger's file reaches nbgrader."""
    notebook = nbformat.read(released, as_version=4)
    answers: dict[str, list[str]] = {}
    for cell in handed_in:
        answers.setdefault(cell.grade_id, []).append(cell.source)
    for cell in notebook.cells:
        marks = cell.metadata.get("nbgrader", {})
        if marks.get("solution"):
            cell.source = "\n\n".join(answers.get(marks["grade_id"], ["# (this cell was missing)"]))
    return notebook


def _checked(result: dict[str, Any], what: str) -> None:
    if not result["success"]:
        said = result.get("error") or result.get("log") or ""
        if said.rstrip().endswith("KeyboardInterrupt"):  # nbgrader catches even Ctrl-C
            raise KeyboardInterrupt
        raise CourseError(f"nbgrader failed at {what}: {said[-1500:]}")
