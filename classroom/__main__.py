"""python -m classroom release | grade SUBMISSIONS: what `make release` and `make grade` run."""

import argparse
import csv
import hashlib
import json
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from classroom import reports
from classroom.checks import REQUEST_SECONDS, TOTAL_SECONDS, Reference, grade
from classroom.course import ASSIGNMENTS, RELEASED, ROOT, Course, CourseError, release
from classroom.isolation import GRADER_MEMORY, LEVELS, limited_memory
from classroom.notebooks import (
    ProblemSet,
    Submission,
    UnreadableError,
    left_out,
    problem_sets,
    read_cells,
    submissions,
    which_problem_set,
)
from classroom.sandbox import Sandbox


def grade_one(
    submission: Submission,
    sets: dict[str, ProblemSet],
    references: dict[str, Reference],
    sandbox: Sandbox,
    seconds: float,
    total: float,
) -> dict[str, Any]:
    """The result of one file, whatever is in it."""
    result: dict[str, Any] = {"student": submission.student, "identifier": submission.identifier, "file": submission.path.name,
                              "problem_set": "", "message": "", "notes": []}  # fmt: skip
    try:
        cells = read_cells(submission.path)
        name = which_problem_set(cells, sets)
    except UnreadableError as error:
        return result | {"message": f"{error}."}
    result["problem_set"] = name
    try:
        verdicts = grade(sets[name], references[name], cells, sandbox, seconds, total)
    except Exception as error:  # a fault of the grader's; one student's must not stop the others
        text = f"The grader failed ({type(error).__name__}: {error}); your teacher will look into it."
        return result | {"message": text, "again": True}
    return result | verdicts | {"most": sets[name].points, "written": len(sets[name].written)}


def fingerprint(submission: Submission, code: str) -> str:
    """Changes when the file, a problem set or the grader does: then the file is graded again."""
    digest = hashlib.sha256(code.encode())
    try:
        digest.update(read_bytes(submission.path))
    except UnreadableError as error:
        digest.update(str(error).encode())
    return digest.hexdigest()


def read_bytes(path: Path) -> bytes:
    return json.dumps([[c.kind, c.source, c.grade_id] for c in read_cells(path)]).encode()


def newest(found: list[tuple[str, Submission, dict[str, Any]]]) -> list[tuple[str, Submission, dict[str, Any]]]:
    """One result for each student and problem set: of several files, the one that was changed last."""
    chosen: dict[tuple[str, str], list[tuple[str, Submission, dict[str, Any]]]] = {}
    for entry in found:
        chosen.setdefault((entry[1].key, entry[2]["problem_set"]), []).append(entry)
    kept = []
    for (_, name), entries in chosen.items():
        entries.sort(key=lambda e: (e[1].path.lstat().st_mtime, e[1].path.name))
        last = entries[-1]
        if len(entries) > 1 and name:
            others = ", ".join(e[1].path.name for e in entries[:-1])
            what = f"{len(entries)} files were handed in for {name}"
            note = f"{what}; the one changed last, {last[1].path.name}, counts, not {others}."
            last[2]["notes"] = [note]
        kept += [last] if name else entries
    return kept


def grade_all(folder: Path, out: Path, options: argparse.Namespace) -> int:
    """Grade every notebook in a folder and write the reports; what was graded before and has not changed is kept."""
    found = list(submissions(folder))
    if not found:
        print(f"There is no notebook (*.ipynb) in {folder}. If what you downloaded is a zip file, unpack it first.")
        return 2
    out.mkdir(parents=True, exist_ok=True)
    out.chmod(0o700)
    results = out / "results"
    results.mkdir(exist_ok=True)
    sets = problem_sets(options.source)
    if not sets:
        print(f"There is no problem set (psN/psN.ipynb) in {options.source}.")
        return 2
    round_file = out / "round.json"
    if not round_file.exists():
        reports.write_text(round_file, json.dumps({"seed": secrets.randbelow(2**31)}))
    os.environ["DDIM_GRADING_SEED"] = str(json.loads(round_file.read_text())["seed"])
    torch.set_num_threads(1)
    code = "".join(ps.digest for ps in sets.values()) + "".join(
        p.read_text() for p in sorted((ROOT / "classroom").glob("*.py"))
    )

    with limited_memory(GRADER_MEMORY), Sandbox(options.isolation) as sandbox:
        if sandbox.level != options.isolation:
            print(NOT_TO_BE_HAD.format(wanted=options.isolation, level=sandbox.level, what=LEVELS[sandbox.level]))
            return 3
        print(f"Isolation of students' code: {sandbox.level} ({LEVELS[sandbox.level]}).")
        references = {name: Reference(ps) for name, ps in sets.items()}
        todo, done = [], []
        for submission in found:
            digest = hashlib.sha256(os.fsencode(submission.path.relative_to(folder))).hexdigest()[:12]
            path = results / f"{submission.key}-{digest}.json"
            print_of_it = fingerprint(submission, code)
            stored = _stored(path)
            if stored and stored["fingerprint"] == print_of_it:
                done.append((submission.key, submission, stored))
            else:
                todo.append((submission, path, print_of_it))
        if done:
            print(f"{len(done)} of {len(found)} were graded before and have not changed.")
        with (
            ThreadPoolExecutor(options.workers) as pool,
            tqdm(total=len(todo), desc="grading", disable=options.quiet) as bar,
        ):
            jobs = {
                pool.submit(grade_one, s, sets, references, sandbox, options.seconds, options.total): (s, p, d)
                for s, p, d in todo
            }
            try:
                for job in as_completed(jobs):
                    submission, path, digest = jobs[job]
                    result = job.result() | {"fingerprint": digest}
                    reports.write_text(path, json.dumps(result, indent=1, ensure_ascii=False))
                    done.append((submission.key, submission, result))
                    bar.update()
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                sandbox.close()  # ends what is running, so that nobody has to wait for it
                raise
        level = sandbox.level
    done.sort(key=lambda entry: (entry[0], str(entry[1].path)))
    try:
        write_reports(newest(done), sets, out, options)
    except CourseError as error:
        print(
            f"{error}\nIf a problem set was changed after grading had begun, give another --out, or remove {out / 'course'}."
        )
        return 1
    if others := left_out(folder):
        names = ", ".join(map(repr, others[:20])) + " …" * (len(others) > 20)
        print(f"left out, as their names do not end with .ipynb: {names}")
    print(f"Students' code ran at isolation level {level!r}: {LEVELS[level]}.")
    return 0


NOT_TO_BE_HAD = """This machine does not give students' code the isolation {wanted!r}, but only {level!r}: {what}.
Grade on a Linux machine or in a container that allows it (the teacher's page says how), or, if you trust your students
with your account's files and with the network, add ISOLATION={level} to the command."""


def _stored(path: Path) -> dict[str, Any] | None:
    try:
        result = json.loads(path.read_text())
        return result if "fingerprint" in result and not result.get("again") else None
    except (OSError, ValueError):
        return None


def write_reports(
    graded: Iterable[tuple[str, Submission, dict[str, Any]]],
    sets: dict[str, ProblemSet],
    out: Path,
    options: argparse.Namespace,
) -> None:
    """The gradebook, grades.csv, a Moodle worksheet for each problem set, and the feedback pages."""
    graded = list(graded)
    course = Course(out / "course", sets, options.source)
    recorded_file = out / "recorded.json"
    recorded = json.loads(recorded_file.read_text()) if recorded_file.exists() else {}
    students: dict[str, dict[str, Any]] = {}
    pages: dict[str, list[tuple[dict[str, Any], tuple[float, int] | None]]] = {}
    for key, submission, result in tqdm(graded, desc="gradebook", disable=options.quiet):
        entry = students.setdefault(
            key, {"student": submission.student, "identifier": submission.identifier, "scores": {}, "comments": {}}
        )
        name, score = result["problem_set"], None
        if name and not result["message"]:
            mark = f"{key} {name}"
            if recorded.get(mark) != result["fingerprint"]:
                failed = {v["grade_id"]: v["message"] for v in result["verdicts"] if v["message"]}
                try:
                    course.record(key, sets[name], read_cells(submission.path), failed)
                except Exception as error:  # of one student's, again
                    result["message"] = (
                        f"The gradebook failed ({type(error).__name__}); your teacher will look into it."
                    )
                    print(f"{key}, {name}: {error}")
                    entry["scores"][name], entry["comments"][name] = None, result["message"]
                    pages.setdefault(key, []).append((result, None))
                    continue
                recorded[mark] = result["fingerprint"]
                reports.write_text(recorded_file, json.dumps(recorded))
            score = course.scores(key, name)
        if name:
            entry["scores"][name] = score[0] if score else None
            entry["comments"][name] = reports.summary(result, score[1] if score else 0)
        pages.setdefault(key, []).append((result, score))
    feedback = out / "feedback"
    feedback.mkdir(exist_ok=True)
    for key, results in pages.items():
        reports.write_text(feedback / f"{key}.html", reports.feedback_page(students[key]["student"], results))
    seen = {name: ps.points for name, ps in sets.items() if any(name in s["scores"] for s in students.values())}
    roster = []
    if options.roster:
        with open(options.roster, newline="", encoding="utf-8-sig") as file:
            roster = list(csv.DictReader(file))
    ordered = [students[key] for key in sorted(students)]
    reports.write_text(out / "grades.csv", reports.canvas_table(ordered, seen, roster))
    for name, points in seen.items():
        reports.write_text(out / f"grades-moodle-{name}.csv", reports.moodle_table(ordered, name, points))
    waiting = sum(score[1] for results in pages.values() for _, score in results if score)
    refused = [
        (r["student"], r["file"], r["message"]) for results in pages.values() for r, _ in results if r["message"]
    ]
    for student, file, message in refused:
        print(f"not graded: {student!r}, {file!r}: {message}")
    print(
        f"{len(students)} students: {out / 'grades.csv'}, feedback pages in {feedback}."
        + (f" {waiting} written answers wait to be read." if waiting else "")
    )


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m classroom", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    one = commands.add_parser("release", help="write the notebooks that students get into book/problem_sets")
    one.add_argument("--out", type=Path, default=RELEASED)
    two = commands.add_parser("grade", help="grade every notebook in a folder")
    two.add_argument("submissions", type=Path)
    two.add_argument("--out", type=Path, default=Path("grading"))
    two.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="how many at once")
    two.add_argument("--isolation", choices=list(LEVELS), default="namespaces")
    two.add_argument(
        "--seconds",
        type=float,
        default=REQUEST_SECONDS,
        help="the longest that one call of a student's function may take",
    )
    two.add_argument("--total", type=float, default=TOTAL_SECONDS, help="the longest that one submission may take")
    two.add_argument("--roster", type=Path, help="a gradebook exported from Canvas, for the students' numbers")
    for command in (one, two):
        command.add_argument(
            "--source",
            type=Path,
            default=ASSIGNMENTS / "source",
            help="the problem sets with solutions and hidden tests",
        )
    two.add_argument("--quiet", action="store_true", help="no progress bars")
    return top


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.command == "release":
        names = list(problem_sets(options.source))
        with tempfile.TemporaryDirectory() as scratch:
            release(names, options.out, Path(scratch), options.source)
        print(f"Released {', '.join(names)} into {options.out}.")
        return 0
    if not options.submissions.is_dir():
        print(
            f"There is no folder {options.submissions}; give the one with what was handed in: make grade SUBMISSIONS=folder"
        )
        return 2
    try:
        return grade_all(options.submissions, options.out, options)
    except KeyboardInterrupt:
        print("\nInterrupted. What is graded is kept; the same command goes on from there.")
        return 130


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as after Ctrl-C, nothing is left running
    sys.exit(main())
