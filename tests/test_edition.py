"""The limits that keep the course short and its pages consistent. `python tests/test_edition.py` prints the counts."""

import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
CHAPTERS = sorted(BOOK.glob("[0-9][0-9]-*.ipynb"))
NAMES = {int(path.name[:2]): path.stem for path in CHAPTERS}
PAGES = sorted(p for p in BOOK.rglob("*.*") if p.suffix in (".md", ".ipynb") and "problem_sets" not in p.parts)
CONTENTS = yaml.safe_load((ROOT / "_toc.yml").read_text())
SHOWN = [entry["file"].removeprefix("book/") for part in CONTENTS["parts"] for entry in part["chapters"]]

# What a reader meets before the exercises. A cell of which only the picture is seen (hide-input) counts, but its lines do not.
LIMITS = {"words": 3000, "cells": 25, "lines": 250, "minutes": 40}
COURSE_MINUTES = 7 * 60
ALGORITHMS = {
    2: 2,
    3: 1,
    4: 1,
    7: 1,
    9: 1,
}  # boxes that a chapter has at least: training and sampling, guidance, DDIM, AB2, inversion

NUMBER = r"\d+(?:(?:, | and | to |, and | or )\d+)*"
LINK = re.compile(r"\{doc\}`([^`<]+?) *<([^>`]+)>`|\[([^\]]*)\]\(([^)]+)\)")


def read(path):
    return nbformat.read(path, as_version=4).cells


def prose(path):
    """The Markdown of a page."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(cell.source for cell in read(path) if cell.cell_type == "markdown")


def words(text):
    """How many words there are to read: a formula in the line is one, a displayed one none, and markup none."""
    text = re.sub(r"\$\$.*?\$\$(?: *\([\w-]+\))?", " ", text, flags=re.DOTALL)
    text = re.sub(r"^[`:]{3,}.*?(?:\} *|$)|^:[\w-]+:.*$", " ", text, flags=re.MULTILINE)  # {directive}, :option:
    text = re.sub(r"\$[^$]+\$", " formula ", text)
    text = re.sub(r"\{[\w:]+\}`([^`<]*)[^`]*`", r" \1 ", text)  # {role}`text <target>`
    text = re.sub(r"\]\([^)]*\)", " ", text)
    return len(re.findall(r"\w[\w’'.,-]*", text))


def counts(path):
    """What the limits are about, for one chapter."""
    cells = read(path)
    end = next((i for i, cell in enumerate(cells) if re.search(r"^## Exercises", cell.source, re.M)), len(cells))
    last = re.split(r"^## Exercises", cells[end].source, flags=re.M)[:1] if end < len(cells) else []
    text = "\n\n".join([cell.source for cell in cells[:end] if cell.cell_type == "markdown"] + last)
    code = [cell for cell in cells[:end] if cell.cell_type == "code" and cell.source.strip()]
    seen = [cell for cell in code if not {"remove-cell", "hide-cell"} & set(cell.metadata.get("tags", []))]
    open_ones = [cell for cell in seen if not {"hide-input", "remove-input"} & set(cell.metadata.get("tags", []))]
    minutes = re.search(r"^\*\*Time:\*\* (?:about )?(\d+) minutes to read", prose(path), re.M)
    return {
        "words": words(text),
        "equations": len(re.findall(r"\$\$.*?\$\$", text, re.DOTALL)),
        "cells": len(seen),
        "lines": sum(bool(line.strip()) for cell in open_ones for line in cell.source.splitlines()),
        "minutes": int(minutes[1]) if minutes else None,
        "algorithms": len(re.findall(r"\{prf:algorithm\}", prose(path))),
        "quiz": len(re.findall(r"^## Quiz$", prose(path), re.M)),
    }


def faults_of_time(found):
    """Whether the stated minutes are honest: 200 words and two cells a minute, and a minute for a derived equation."""
    least = found["words"] / 200 + found["cells"] / 2
    if least <= found["minutes"] <= least + found["equations"] + 5:
        return []
    counted = f"{least:.0f} and up to one for each of {found['equations']} equations"
    return [f"{found['minutes']} minutes stated, counted are {counted}"]


def faults_of_chapter(path):
    """In words, what a chapter has too much of or lacks."""
    found = counts(path)
    faults = [f"{found[key]} {key}, at most {limit}" for key, limit in LIMITS.items() if (found[key] or 0) > limit]
    if found["minutes"] is None:
        faults.append("no line '**Time:** NN minutes to read, … to run on two CPU cores'")
    else:
        faults += faults_of_time(found)
    if found["algorithms"] < (least := ALGORITHMS.get(int(path.name[:2]), 0)):
        faults.append(f"{found['algorithms']} algorithm boxes, at least {least}")
    if found["quiz"] != 1:
        faults.append(f"{found['quiz']} sections 'Quiz', not one")
    return faults


def symbols(cell):
    """The symbols that a row of the notation table explains, without argument, relation and running index."""
    for formula in re.findall(r"\$([^$]+)\$", cell):
        name = re.split(r"\s*(?:=|>|\\in\b)", formula)[0].strip()
        name = re.sub(r"^((?:\\mathcal|\\mathrm) *\S+?|[^(]*)\(.*$", r"\1", name)
        yield re.sub(r"_(?:\{?[tniTS0\d](?:-1)?\}?)(?![\w\\])", "", name).strip()


def faults_of_notation(text):
    """Symbols with two meanings: in two rows, or explained twice within one."""
    table = re.search(r"^## This book\n+((?:\|.*\n)+)", text, re.M)[1].splitlines()[2:]
    rows = [re.split(r" *(?<!\\)\| *", row.strip("| ")) for row in table]
    uses = Counter(name for row in rows for name in set(symbols(row[0])))
    faults = [f"${name}$ is explained in {n} rows" for name, n in uses.items() if n > 1]
    for row in rows:
        for other in re.findall(r"\$([^$=]+)\$(?: without[^;|)]*?)? (?:is|are|was|writes) ", row[1]):
            if set(symbols(f"${other}$")) & set(symbols(row[0])):
                faults.append(f"${other}$ has a second meaning in the row of {row[0]}")
        if re.search(r"`chapter[^`]*` writes", row[1]):
            faults.append(f"another chapter writes {row[0]} otherwise")
    return faults


def faults_of_course():
    minutes = [counts(path)["minutes"] for path in CHAPTERS]
    if None in minutes:
        return [f"no minutes stated in {minutes.count(None)} chapters"]
    return [f"{sum(minutes)} minutes in all, at most {COURSE_MINUTES}"] if sum(minutes) > COURSE_MINUTES else []


def faults(page):
    if page == "the course":
        return faults_of_course()
    if page == "notation":
        return faults_of_notation(prose(BOOK / "appendix" / "notation.md"))
    return faults_of_chapter(BOOK / f"{page}.ipynb")


@pytest.mark.parametrize("page", [*(path.stem for path in CHAPTERS), "notation", "the course"])
def test_limits(page):
    assert not faults(page)


@pytest.mark.parametrize("path", sorted(BOOK.glob("deeper/*.ipynb")), ids=lambda p: p.stem)
def test_deeper_pages_say_how_long_they_take(path):
    found = counts(path)
    assert found["minutes"] is not None, "no line '**Time:** NN minutes to read, … to run on two CPU cores'"
    assert not faults_of_time(found)


@pytest.mark.parametrize(("minutes", "faults"), [(14, 1), (15, 0), (23, 0), (24, 1)])
def test_a_dishonest_time_is_found(minutes, faults):
    found = {"words": 2000, "cells": 10, "equations": 3, "minutes": minutes}
    assert len(faults_of_time(found)) == faults


def test_words_are_what_there_is_to_read():
    assert words("Two words, $x_t = 3$ and\n\n$$\na b c\n$$ (eq-x)\n") == 4
    assert words("```{margin}\nfour words {doc}`chapter 1 <01-forward-process>`\n```\n") == 4
    assert words(":::{prf:lemma} Two words\n:label: lem-x\nand *three* more.\n:::\n") == 5
    assert words("{eq}`eq-x` [a link](07-ode.ipynb)") == 3


def test_symbols_with_two_meanings_are_found():
    head = "## This book\n\n| symbol | meaning | code |\n|---|---|---|\n"
    assert not faults_of_notation(head + "| $x_0$, $x_t$ | an image | |\n| $\\bar x$ | that, divided | |\n")
    for rows in (
        "| $d$ | pixels | |\n| $\\bar\\theta_n$, $d$ | decay | |\n",
        "| $\\ell$ | length | |\n| $\\ell_i$, $k_i$ | time | |\n",
        "| $d$ | decay | |\n| $d(S)$ | distance | |\n",
        "| $s$ | a ratio (in {doc}`chapter 2 <../02-ddpm>`, $s$ is a time) | |\n",
        "| $\\theta_t$ | an angle ($\\theta$ without an index are weights) | |\n",
    ):
        assert faults_of_notation(head + rows), rows


# How chapters are numbered, and cited.


def test_chapters_stand_in_the_order_of_their_numbers():
    numbered = [name for name in SHOWN if re.match(r"\d\d-", name)]
    assert numbered == sorted(numbered)
    assert len({name[:2] for name in numbered}) == len(numbered)


def citations(text):
    """Faults in how a page cites chapters by number: no link, or the link of another chapter."""
    wrong = []
    for match in LINK.finditer(text):
        said, target = (match[1], match[2]) if match[1] else (match[3], match[4])
        number = re.fullmatch(r"(?:[Cc]hapters? )?(\d+)", said.strip())
        file = Path(target).name.removesuffix(".ipynb").removesuffix(".html")
        if number and re.match(r"\d\d-", file) and NAMES.get(int(number[1])) != file:
            wrong.append(f"{said!r} leads to {target}")
    for match in re.finditer(rf"\b[Cc]hapters?\s({NUMBER})", LINK.sub(" link ", text)):
        if any(NAMES.get(int(n), "") in SHOWN for n in re.findall(r"\d+", match[1])):
            wrong.append(f"{match[0]!r} is no link")
    return wrong


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(BOOK).as_posix())
def test_a_chapter_s_number_is_a_link_to_that_chapter(path):
    assert not citations(prose(path))


def test_wrong_citations_of_chapters_are_found():
    assert not citations("{doc}`Chapters 1 <01-forward-process>` and [2](02-ddpm.ipynb), {doc}`the ODE <../07-ode>`")
    assert citations("see chapter 1, or chapters 1\nand 2") == ["'chapter 1' is no link", "'chapters 1' is no link"]
    assert citations("{doc}`chapter 3 <02-ddpm>`") == ["'chapter 3' leads to 02-ddpm"]
    assert citations("[chapter 99](../01-forward-process.ipynb)")


def test_docstrings_cite_chapters_that_exist():
    for path in (ROOT / "ddimlib").glob("*.py"):
        text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8"))
        cited = {
            int(n) for found in re.findall(rf"\bchapters? ({NUMBER})", text, re.I) for n in re.findall(r"\d+", found)
        }
        assert cited <= NAMES.keys(), path.name


if __name__ == "__main__":
    table = {path.stem: counts(path) for path in CHAPTERS}
    columns = list(next(iter(table.values())))
    print(f"{'':20}" + "".join(f"{column:>11}" for column in columns))
    for name, row in table.items():
        print(f"{name:20}" + "".join(f"{row[column] if row[column] is not None else '–':>11}" for column in columns))
    print(f"\nlimits: {LIMITS}; the whole course at most {COURSE_MINUTES} minutes\n")
    for page in [*table, "notation", "the course"]:
        print(f"{page}: {'; '.join(faults(page)) or 'as it should be'}")
