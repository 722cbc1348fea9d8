"""How long grading takes: 30 submissions, ten of each problem set, of which five are right, three half done and two untouched.

python benchmarks/grading.py [--workers 2]

Prints the seconds of a submission (least, median, most) and those of the whole run, with starting and the gradebook.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import nbformat

from classroom.__main__ import main
from classroom.course import RELEASED, ROOT
from classroom.notebooks import problem_sets


def write_submissions(folder: Path) -> int:
    """One notebook for each of 30 students; returns how many."""
    count = 0
    for name, problem_set in problem_sets(ROOT / "assignments" / "source").items():
        solutions = [(c.grade_id, c.source) for c in problem_set.solutions]
        for k in range(10):
            answered = dict(solutions if k < 5 else solutions[: len(solutions) // 2] if k < 8 else [])
            notebook = nbformat.read(RELEASED / name / f"{name}.ipynb", as_version=4)
            for cell in notebook.cells:
                cell.source = answered.get(cell.metadata.get("nbgrader", {}).get("grade_id"), cell.source)
            nbformat.write(notebook, folder / f"student-{name}-{k}.ipynb")
            count += 1
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    workers = parser.parse_args().workers
    with tempfile.TemporaryDirectory() as scratch:
        submitted, out = Path(scratch, "submitted"), Path(scratch, "grading")
        submitted.mkdir()
        count = write_submissions(submitted)
        begin = time.perf_counter()
        main(["grade", str(submitted), "--out", str(out), "--workers", str(workers)])
        whole = time.perf_counter() - begin
        seconds = sorted(json.loads(p.read_text())["seconds"] for p in (out / "results").glob("*.json"))
    low, middle, high = seconds[0], statistics.median(seconds), seconds[-1]
    print(f"{count} submissions, {workers} at once, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"seconds for one: {low:.1f} to {high:.1f}, median {middle:.1f}; the whole run: {whole:.0f}")
