"""What teachers and students get: grades.csv and its like, and a page of feedback for each student."""

import csv
import html
import io
import re
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8", errors="replace")
    part.replace(path)


def cell(value: Any) -> str:
    """A cell of a table that no spreadsheet takes for a formula, whatever a student is called."""
    text = "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    text = re.sub(r"[\x00-\x1f]+", " ", text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def table(rows: list[list[Any]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([[cell(v) for v in row] for row in rows])
    return file.getvalue()


def canvas_table(students: list[dict[str, Any]], points: dict[str, float], roster: list[dict[str, str]]) -> str:
    """grades.csv: the columns that Canvas imports, one row a student; Moodle imports it too, once its columns are assigned.

    Args:
        students: each with "student", "identifier" and "scores", {problem set: points, or None}.
        points: of each problem set.
        roster: the rows of a gradebook that was exported from Canvas, to take names and numbers from.
    """
    columns = ["Student", "ID", "SIS User ID", "SIS Login ID", "Section"]
    rows: list[list[Any]] = [[*columns, *points], ["    Points Possible", "", "", "", "", *points.values()]]
    for entry in students:
        known = next((row for row in roster if _same(row, entry)), {})
        person = (
            [known.get(c, "") for c in columns]
            if known
            else [entry["student"], entry["identifier"], "", entry["student"], ""]
        )
        rows.append([*person, *(entry["scores"].get(name) for name in points)])
    return table(rows)


def _same(row: dict[str, str], entry: dict[str, Any]) -> bool:
    """Whether a row of the roster is this student: by number, by login, or by name as Canvas puts it into file names."""
    plain = [re.sub(r"\W", "", s).lower() for s in (row.get("Student", ""), entry["student"])]
    by_number = entry["identifier"] and entry["identifier"] == row.get("ID")
    return bool(by_number or row.get("SIS Login ID") == entry["student"] or (plain[0] and plain[0] == plain[1]))


def moodle_table(students: list[dict[str, Any]], name: str, most: float) -> str:
    """The grading worksheet of a Moodle assignment, filled in for one problem set."""
    # Moodle refuses a worksheet without a column "Last modified (grade)"; it may be empty.
    columns = ["Identifier", "Full name", "Grade", "Maximum Grade", "Last modified (grade)", "Feedback comments"]
    rows: list[list[Any]] = [columns]
    for entry in students:
        if name in entry["scores"]:
            identifier = f"Participant {entry['identifier']}" if entry["identifier"] else ""
            rows.append(
                [identifier, entry["student"], entry["scores"][name], float(most), "", entry["comments"].get(name, "")]
            )
    return table(rows)


def summary(result: dict[str, Any], waiting: int) -> str:
    """One line for the comment box of a learning platform."""
    if result.get("message"):
        return result["message"]
    missed = [f"{v['title']}: {v['message']}" for v in result["verdicts"] if v["message"]]
    text = " | ".join(missed) or "All checks passed."
    return text + (f" | {waiting} written answer(s) still to be read." if waiting else "")


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark }}
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse; width: 100% }} 
th, td {{ text-align: left; vertical-align: top; padding: .4rem .6rem .4rem 0; border-bottom: 1px solid #8888 }}
td:first-child, th:first-child {{ white-space: nowrap }} .seen {{ overflow-wrap: anywhere }}
</style></head><body><h1>{title}</h1>
{body}</body></html>
"""


def feedback_page(student: str, results: list[tuple[dict[str, Any], tuple[float, int] | None]]) -> str:
    """What one student's notebooks earned, and what went wrong where."""
    parts = []
    for result, score in results:
        name = result["problem_set"] or "A file that could not be graded"
        parts.append(f"<h2>{_safe(name)}</h2>\n<p>File: {_safe(result['file'])}</p>")
        parts += [f"<p>{_safe(note)}</p>" for note in result["notes"]]
        if result.get("message"):
            parts.append(f"<p><strong>Not graded.</strong> {_safe(result['message'])}</p>")
            continue
        points, waiting = score or (sum(v["points"] for v in result["verdicts"]), result["written"])
        wait = f" {waiting} written answer{'s' * (waiting > 1)} will be read by your teacher." if waiting else ""
        parts.append(f"<p><strong>{points:g} of {result['most']:g} points.</strong>{wait}</p>")
        parts.append("<table><tr><th scope=col>Points</th><th scope=col>Check</th></tr>")
        for v in result["verdicts"]:
            seen = f"<br><span class=seen>{_safe(v['message'])}</span>" if v["message"] else ""
            parts.append(f"<tr><td>{v['points']:g} of {v['most']:g}</td><td>{_safe(v['title'])}{seen}</td></tr>")
        parts.append("</table>")
        remarks = [*result["remarks"], *(f"Cell {cell}: {text}" for cell, text in result["errors"].items())]
        parts += ["<ul>", *(f"<li class=seen>{_safe(remark)}</li>" for remark in remarks), "</ul>"] if remarks else []
    return _PAGE.format(title=f"Feedback for {_safe(student)}", body="\n".join(parts))


def _safe(text: str) -> str:
    """Text that was partly written by a stranger, for a page; `code` is set as code."""
    return re.sub(r"`([^`]{1,80})`", r"<code>\1</code>", html.escape(text))
