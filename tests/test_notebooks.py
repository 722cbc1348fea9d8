"""What nbval cannot see: that notebooks were run as they stand, that pictures are described and compared, and the skeleton."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
NOTEBOOKS = sorted(p for p in BOOK.rglob("*.ipynb") if not {"problem_sets", ".ipynb_checkpoints"} & set(p.parts))
CHAPTERS = [p for p in NOTEBOOKS if re.match(r"\d\d-", p.name)]

PRIVATE = re.compile(r"/(?:home|root|Users|work|tmp|usr|content)/|[A-Z]:\\|Traceback \(most recent")
TIME = re.compile(r"\b\d+(?:\.\d+)?\s?(?:s|ms|µs|us|ns|sec|seconds?|minutes?|min|it/s)\b|\d\d:\d\d:\d\d")
ADMONITION_WITH_TITLE = re.compile(
    r"^[`:]{3,}\{(?:note|tip|hint|warning|caution|danger|important|attention|error|seealso)\} *\S", re.MULTILINE
)


def named(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda p: p.relative_to(BOOK).as_posix())


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code" and cell.source.strip()]


def prose(path):
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def tags(cell):
    return cell.metadata.get("tags", [])


def text_of(output):
    """What an output says, without the pictures that are embedded in it."""
    data = output.get("data", {})
    text = "\n".join([output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")])
    return re.sub(r"data:[\w/+.-]+;base64,[\w+/=]+", "data:", text)


def has_picture(output):
    return any(kind.startswith("image/") for kind in output.get("data", {}))


def test_there_are_chapters():
    assert CHAPTERS


def test_the_site_shows_every_notebook():
    shown = set(re.findall(r"file: book/(\S+)", (ROOT / "_toc.yml").read_text()))
    assert {p.relative_to(BOOK).with_suffix("").as_posix() for p in NOTEBOOKS} <= shown


@named(NOTEBOOKS)
def test_every_code_cell_was_run_in_order_and_without_error(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        failed = any(output.output_type == "error" for output in cell.outputs)
        assert not failed or "raises-exception" in tags(cell), cell.source


@named(NOTEBOOKS)
def test_size_and_kernel(path):
    assert path.stat().st_size <= 2 * 2**20
    assert read(path).metadata.kernelspec.name == "python3"
    for cell in code_cells(path):
        assert len(cell.source.splitlines()) <= 20, f"more than 20 lines:\n{cell.source}"


@named(NOTEBOOKS)
def test_outputs_are_the_same_on_every_machine(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            text = text_of(output)
            assert not (found := PRIVATE.search(text)), f"{found[0]!r} in the output of\n{cell.source}"
            if "nbval-ignore-output" not in tags(cell):
                assert not (found := TIME.search(text)), f"{found[0]!r} in the output of\n{cell.source}"


@named(NOTEBOOKS)
def test_every_picture_has_alternative_text(path):
    for cell in code_cells(path):
        if any(map(has_picture, cell.outputs)):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt) >= 20, f"no mystnb.image.alt for the picture of\n{cell.source}"
        for output in cell.outputs:
            assert not re.search(r'<img(?![^>]*\balt="[^"])', text_of(output)), f"<img> without alt from\n{cell.source}"
    assert "![](" not in prose(path)


@named(NOTEBOOKS)
def test_titles_of_admonitions_are_not_lost(path):
    found = ADMONITION_WITH_TITLE.search(prose(path))
    assert not found, f"MyST reads that title as text; write {{admonition}} with :class: instead of {found[0]!r}"


@named(CHAPTERS)
def test_skeleton_of_a_chapter(path):
    text = prose(path)
    assert text.startswith("# ")
    cells = read(path).cells
    start = next(i for i, cell in enumerate(cells) if re.search(r"^## ", cell.source, re.MULTILINE))
    assert "?" in cells[0].source, "a chapter opens with a question"
    assert any(has_picture(output) for cell in cells[:start] for output in cell.get("outputs", [])), (
        "and with a picture"
    )
    assert "you will be able to" in text.lower()
    assert re.search(r"^\*\*Time:\*\*.* to read.* to run on two CPU cores", text, re.MULTILINE)
    headings = [h.lower() for h in re.findall(r"^## (.+)$", text, flags=re.MULTILINE)]
    places = [next((i for i, h in enumerate(headings) if h.startswith(part)), None)
              for part in ("what goes wrong", "summary", "exercises", "references")]  # fmt: skip
    assert None not in places, headings
    assert places == sorted(places), headings
    assert "{bibliography}" in text
    assert any("getsource" in cell.source for cell in code_cells(path)), "show the library's own source"


@named(CHAPTERS)
def test_every_exercise_has_a_folded_solution(path):
    text = prose(path)
    exercises = re.findall(r"\{exercise\}[^\n]*\n(?::[^\n]*\n)*?:label: *(\S+)", text)
    folded = re.findall(r"\{solution(?:-start)?\} *(\S+)\n(?::[^\n]*\n)*?:class: *dropdown", text)
    assert 3 <= len(exercises) <= 6
    assert sorted(exercises) == sorted(folded)
    assert len(re.findall(r"\{exercise\}", text)) == len(exercises), "an exercise without a label"


@named(CHAPTERS)
def test_every_solution_has_code_that_was_run(path):
    inside, run = None, {}
    for cell in read(path).cells:
        if cell.cell_type == "code" and inside and cell.execution_count:
            run[inside] += 1
        for start, label in (
            re.findall(r"\{solution(-start|-end|)\} *(\S*)", cell.source) if cell.cell_type == "markdown" else []
        ):
            inside = label if start == "-start" else None
            if start != "-end":
                run[label] = 0
    assert run
    assert all(run.values()), run


# Pictures: nbval itself does not look at them; the root conftest.py does.

PLOT = "import matplotlib.pyplot as plt\n\nplt.plot([0, 1, 2], [0, {height}, 1])\nplt.show()"


@pytest.fixture(scope="module")
def plotted(tmp_path_factory):
    """A notebook with one line plot, run."""
    path = tmp_path_factory.mktemp("pictures") / "plot.ipynb"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(PLOT.format(height=1))])
    nbformat.write(notebook, path)
    subprocess.run([sys.executable, ROOT / "tools" / "run_notebooks.py", path], check=True)
    return path


def nbval(path):
    for file in (ROOT / "conftest.py", ROOT / "tools" / "twin.py"):
        shutil.copy(file, path.parent)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env", path.name]
    return subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=False)


def test_a_picture_drawn_again_passes(plotted):
    result = nbval(plotted)
    assert result.returncode == 0, result.stdout


def test_a_changed_picture_fails(plotted, tmp_path):
    notebook = json.loads(plotted.read_text())
    notebook["cells"][0]["source"] = PLOT.format(height=1.5)
    changed = tmp_path / "changed.ipynb"
    changed.write_text(json.dumps(notebook))
    result = nbval(changed)
    assert result.returncode == 1
    assert "differs from the stored one" in result.stdout


def test_a_missing_picture_fails(plotted, tmp_path):
    notebook = json.loads(plotted.read_text())
    for output in notebook["cells"][0]["outputs"]:
        output["data"].pop("image/png", None)
    changed = tmp_path / "missing.ipynb"
    changed.write_text(json.dumps(notebook))
    result = nbval(changed)
    assert result.returncode == 1
    assert "0 pictures are stored, 1 were drawn" in result.stdout
