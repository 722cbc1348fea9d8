"""One submission against the checks of its problem set.

The checks, hidden ones too, run here, in the grader's process. What they call of the student's runs in isolation and is
asked over a connection (:mod:`classroom.sandbox`). So nothing that the student's code does to PyTorch, to `assert` or to
its own process changes a verdict: it can only answer, and the cases are new each time.

Before a part is checked, the functions of all earlier parts are replaced, over there, by ones that ask the reference
solution. A wrong early function therefore costs its own points only. Later parts stay the student's, as they are in a
notebook that is run from top to bottom: else a sampler that was never written would give every part that it contains.

The reference solution that is asked runs in isolation, too, in a process of its own: a student's code chooses what it is
asked for, and that may be a list of all integers.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from classroom.notebooks import (
    Cell,
    Check,
    ProblemSet,
    computed_names,
    definitions,
    hidden_tests_removed,
    well_formed,
    without_magics,
)
from classroom.sandbox import Process, Sandbox, Stopped, StudentError

REQUEST_SECONDS, TOTAL_SECONDS = 10.0, 60.0
"""The longest that one call of a student's function, and one submission, may take."""

LONGEST = 1000
"""Characters of a message."""


@dataclass
class Verdict:
    """What came out of one check."""

    grade_id: str
    title: str
    points: float
    most: float
    message: str = ""


class Reference:
    """The author's solutions, run here: the namespace of the checks."""

    def __init__(self, problem_set: ProblemSet) -> None:
        self.names: dict[str, Any] = {"__name__": "reference"}
        self.cells = [cell for cell in problem_set.cells if cell in problem_set.setup or cell in problem_set.solutions]
        for cell in self.cells:
            exec(compile(without_magics(cell.source), f"{problem_set.name} {cell.grade_id}", "exec"), self.names)
        self.functions = [name for name in problem_set.names if callable(self.names[name])]


class Student:
    """A submission at work: its process, started again when it has ended, and what went wrong in its cells."""

    def __init__(
        self,
        sandbox: Sandbox,
        problem_set: ProblemSet,
        reference: Reference,
        cells: list[Cell],
        seconds: float,
        total: float,
    ) -> None:
        self.sandbox, self.problem_set, self.reference = sandbox, problem_set, reference
        self.seconds, self.end = seconds, time.monotonic() + total
        self.total = total
        self.cells = [
            (cell.grade_id or cell_name(cell, n), student_source(cell)) for n, cell in enumerate(cells, start=1)
        ]
        self.left_out = {name for cell in cells if not cell.solution for name in computed_names(cell.source)}
        self.errors: dict[str, str] = {}
        self.hopeless: list[str] = []
        self.process: Process | None = None
        self.solver: Process | None = None
        self.solutions = {name: functools.partial(self.solve, name) for name in reference.functions}
        self.defined: set[str] = set()

    def prepare(self, own: list[str]) -> Process:
        """A process in which the functions before those named `own` are the reference's, and all others the student's."""
        process = self._alive()
        process.seconds = self._left()
        order = self.problem_set.names
        first = min(map(order.index, own), default=len(order))
        earlier = [name for name in self.solutions if order.index(name) < first]
        # The process may have kept what stood for the student's functions while a later part was checked.
        process.withheld = [function for name, function in self.solutions.items() if name not in earlier]
        for name, function in self.solutions.items():
            if name in earlier:
                process.set(name, function)
            else:
                process.restore(name)
        return process

    def solve(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """The reference's answer to a question of the student's code."""
        if self.solver is None or self.solver.dead:
            self.solver = Process(self.sandbox, self._left())
            for cell in self.reference.cells:
                self.solver.run(without_magics(cell.source), cell.grade_id)
        self.solver.seconds = self._left()
        return self.solver.call(name, *args, **kwargs)

    def stop(self) -> None:
        for process in (self.process, self.solver):
            if process:
                process.stop()

    def _left(self) -> float:
        left = min(self.seconds, self.end - time.monotonic())
        if left <= 0:
            raise Stopped(f"the submission used up its {self.total:g} seconds before this check")
        return left

    def _alive(self) -> Process:
        while self.process is None or self.process.dead:
            process = Process(self.sandbox, self._left())
            for cell in self.problem_set.setup:
                process.run(without_magics(cell.source), cell.grade_id)
            for name, source in self.cells:
                ended = self.hopeless.count(name)  # how often it ran too long, or ended the process
                if ended == 1:
                    source = definitions(source)  # its functions may be good
                elif ended:
                    continue
                process.seconds = self._left()
                try:
                    self.defined = set(process.run(source, f"cell {name}"))
                    if not ended:
                        self.errors.pop(name, None)
                except StudentError as error:
                    self.errors[name] = str(error)
                except Stopped as error:
                    self.errors[name] = f"{error}; only its definitions were used" if not ended else str(error)
                    self.hopeless.append(name)
                    break
            self.process = process
        return self.process


def cell_name(cell: Cell, number: int) -> str:
    return f"number {number}"


def student_source(cell: Cell) -> str:
    """What of a student's cell is run: all of a solution cell, the definitions of any other."""
    return without_magics(cell.source) if cell.solution else definitions(cell.source)


def students_cells(problem_set: ProblemSet, handed_in: list[Cell]) -> tuple[list[Cell], list[str]]:
    """The code cells that are the student's own, in order, and remarks on what was changed that should not have been."""
    original = {c.grade_id: c for c in problem_set.cells if c.grade_id}
    present = {c.grade_id for c in handed_in}
    remarks, cells = [], []
    for cell in handed_in:
        if cell.kind != "code" or not cell.source.strip():
            continue
        known = original.get(cell.grade_id)
        if known is None or known.solution:
            cells.append(Cell("code", cell.source, cell.grade_id, solution=known is not None))
    texts = {c.grade_id: c.source.rstrip() for c in handed_in}
    for grade_id, cell in original.items():
        given = hidden_tests_removed(cell.source)
        if grade_id in present and cell.locked and texts[grade_id] != given.rstrip():
            remarks.append(f"You changed the cell {grade_id}; the original was used.")
        if grade_id not in present:
            kind = "answer" if cell.solution else "check" if cell.grade else "given"
            remarks.append(
                f"The {kind} cell {grade_id} is missing from your notebook"
                + ("." if cell.solution else "; the original was used.")
            )
    return cells, remarks


def run_check(check: Check, student: Student) -> Verdict:
    """One check: its points and, if it failed, why."""

    def verdict(message: str) -> Verdict:
        text = message if len(message) <= LONGEST else f"{message[:LONGEST]} …"  # a student's code may have filled it
        text = well_formed(text)
        return Verdict(check.grade_id, check.title, 0.0 if message else check.points, check.points, text)

    try:
        process = student.prepare(check.own)
        names = dict(student.reference.names)
        for name in check.own:
            names[name] = students_value(name, process, student)
        exec(compile(check.source, check.grade_id, "exec"), names)
    except AssertionError as error:
        return verdict(str(error) or "A check failed.")
    except StudentError as error:
        if error.kind == "NotImplementedError" and not error.text:
            return verdict("Not written yet.")
        return verdict(f"Your code raised {error}{of_what_was_not_run(error, student)}")
    except Stopped as error:
        return verdict(f"Your code was stopped: {error}.")
    except Exception as error:  # what the student's function returned made the check itself fail
        return verdict(f"What your code returned does not fit the check ({type(error).__name__}: {error}).")
    return verdict("")


def of_what_was_not_run(error: StudentError, student: Student) -> str:
    """A hint for a name that the notebook computes in a cell of which only definitions are run."""
    missing = error.text.split("'")[1] if error.kind == "NameError" and error.text.count("'") > 1 else ""
    if missing not in student.left_out:
        return ""
    return (
        f". A cell that you added computes `{missing}`, but only imports, functions, classes and plain values of such cells "
        "are run: move the line to the cell of your answer"
    )


def students_value(name: str, process: Process, student: Student) -> Any:
    """A function that asks the student's, or the value of a variable of theirs."""
    if name not in student.defined:
        sources = dict(student.cells)
        errors = {cell: text for cell, text in student.errors.items() if name in sources[cell] or "longer than" in text}
        if any("NotImplementedError" in text for text in errors.values()) or (
            errors == {} and not callable(student.reference.names[name])
        ):
            raise AssertionError("Not written yet.")
        why = "; ".join(f"cell {cell}: {text}" for cell, text in errors.items())
        if why and not callable(student.reference.names[name]):
            why += ". Your long computations are not run again: write the value itself"
        raise AssertionError(
            f"There is no `{name}` in your notebook" + (f" ({why})" if why else "; was it renamed or deleted?")
        )
    if callable(student.reference.names[name]):
        return functools.partial(process.call, name)
    return process.get(name)


def grade(
    problem_set: ProblemSet, reference: Reference, handed_in: list[Cell], sandbox: Sandbox,
    seconds: float = REQUEST_SECONDS, total: float = TOTAL_SECONDS, clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:  # fmt: skip
    """Grade one notebook: the verdict on every check, remarks, the errors of cells, the seconds that it took."""
    begin = clock()
    cells, remarks = students_cells(problem_set, handed_in)
    student = Student(sandbox, problem_set, reference, cells, seconds, total)
    try:
        verdicts = [run_check(check, student) for check in problem_set.checks]
    finally:
        student.stop()
    solutions = {c.grade_id for c in problem_set.solutions}
    errors = {name: text for name, text in student.errors.items() if name in solutions or "SyntaxError" in text}
    return {
        "verdicts": [asdict(v) for v in verdicts],
        "remarks": remarks,
        "errors": errors,
        "isolation": student.process.level if student.process else sandbox.level,
        "seconds": round(clock() - begin, 2),
    }
