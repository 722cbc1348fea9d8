"""Problem sets as students hand them in: released notebooks with the solutions, changed at one place."""

import nbformat

from classroom.checks import Student, run_check, students_cells
from classroom.course import RELEASED, ROOT
from classroom.notebooks import parse_cells, problem_sets

SETS = problem_sets(ROOT / "assignments" / "source")
PATIENCE = 30.0  # seconds for one answer, on a busy machine


def released(name):
    return nbformat.read(RELEASED / name / f"{name}.ipynb", as_version=4)


def filled(name, changes=(), answers=None):
    """The released notebook with the solutions, or `answers`, after replacements (grade_id, old, new)."""
    notebook = released(name)
    solutions = {c.grade_id: c.source for c in SETS[name].cells if c.solution} if answers is None else dict(answers)
    for grade_id, old, new in changes:
        assert old in solutions[grade_id], f"{old!r} is not in the solution of {grade_id}"
        solutions[grade_id] = solutions[grade_id].replace(old, new)
    for cell in notebook.cells:
        grade_id = cell.metadata.get("nbgrader", {}).get("grade_id")
        if grade_id in solutions:
            cell.source = solutions[grade_id]
    return notebook


def cells_of(notebook):
    return parse_cells(nbformat.writes(notebook).encode())


def verdicts(name, notebook, sandbox, references, checks=None, seconds=PATIENCE):
    """The message of each check that failed, by its grade_id without the name of the set."""
    cells, _ = students_cells(SETS[name], cells_of(notebook))
    student = Student(sandbox, SETS[name], references[name], cells, seconds, 10 * seconds)
    try:
        results = [run_check(c, student) for c in SETS[name].checks if checks is None or c.grade_id in checks]
    finally:
        student.stop()
    return {v.grade_id.removeprefix(f"{name}-").removesuffix("-check"): v.message for v in results if v.message}
