"""The branch that Colab opens: every notebook, with the library installed first, and nothing else changed."""

import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")  # the site's, not needed where only the library is tested
yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = "https://github.com/owner/name"


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """A repository to which the branch was pushed twice, as by two deployments; gives a checkout of it."""
    base = tmp_path_factory.mktemp("colab")
    subprocess.run(["git", "init", "-q", "--bare", base / "host"], check=True)
    for time in ("first", "second"):
        command = [sys.executable, ROOT / "tools" / "colab.py", ADDRESS, base / time]
        subprocess.run(command, check=True, env={"PATH": "/usr/bin:/bin", "HOME": str(base)})
        subprocess.run(["git", "push", "-q", "--force", base / "host", "colab"], cwd=base / time, check=True)
    subprocess.run(["git", "clone", "-q", "--branch", "colab", base / "host", base / "there"], check=True)
    return base / "there"


NOTEBOOKS = sorted(p.relative_to(ROOT) for p in ROOT.glob("book/**/*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def test_every_notebook_is_there_and_nothing_else(pushed):
    assert sorted(p.relative_to(pushed) for p in pushed.glob("**/*.*") if ".git" not in p.parts) == NOTEBOOKS
    log = subprocess.run(["git", "-C", pushed, "log", "--oneline"], capture_output=True, text=True, check=True)
    assert len(log.stdout.splitlines()) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_the_library_is_installed_first(pushed, path):
    notebook = nbformat.read(pushed / path, nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    install, *others = notebook.cells
    assert install.source.splitlines()[-1] == f"%pip install -q git+{ADDRESS}"
    assert "OWNER/NAME" not in nbformat.writes(notebook)
    original = nbformat.read(ROOT / path, nbformat.NO_CONVERT)
    assert original.cells == others
    assert (notebook.metadata, notebook.nbformat_minor) == (original.metadata, original.nbformat_minor)


def test_the_workflow_publishes_it():
    job = yaml.safe_load((ROOT / ".github/workflows/pages.yml").read_text())["jobs"]["colab"]
    assert job["permissions"] == {"contents": "write"}
    script = "\n".join(step.get("run", "") for step in job["steps"])
    assert 'tools/colab.py "$GITHUB_SERVER_URL/$GITHUB_REPOSITORY"' in script
    assert script.rstrip().endswith("colab")  # the branch that is pushed
