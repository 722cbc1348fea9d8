"""The notebooks as Colab opens them: `python tools/colab.py https://github.com/owner/name FOLDER`; the deployment does so.

Colab has PyTorch, but not ddimlib. The copies in FOLDER, a new git repository with one commit on the branch `colab`, begin
with a cell that installs it from the address. The notebooks themselves need no such cell: they are run where the library is.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BRANCH = "colab"
GIT = ["git", "-c", "user.name=colab", "-c", "user.email=colab@localhost", "-c", "commit.gpgsign=false"]


def with_library(notebook: dict, address: str) -> dict:
    """A notebook that first installs ddimlib from the address."""
    lines = ["# Once a session: Colab does not have the book's library.\n", f"%pip install -q git+{address}"]
    install = {
        "cell_type": "code",
        "id": "install",
        "metadata": {},
        "execution_count": None,
        "outputs": [],
        "source": lines,
    }
    return notebook | {"cells": [install, *notebook["cells"]]}


def write(address: str, folder: Path, root: Path = ROOT) -> int:
    """Write every notebook of the book to the same place in a new folder, and commit them. Returns their number."""
    notebooks = sorted(path for path in root.glob("book/**/*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    for path in notebooks:
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        notebook = with_library(json.loads(path.read_text(encoding="utf-8")), address)
        target.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for command in (["init", "--quiet", f"--initial-branch={BRANCH}"], ["add", "book"],
                    ["commit", "--quiet", "--message", f"The notebooks of {address} for Colab"]):  # fmt: skip
        subprocess.run([*GIT, *command], cwd=folder, check=True)
    return len(notebooks)


if __name__ == "__main__":
    address, folder = sys.argv[1:]
    print(f"{write(address, Path(folder))} notebooks in {folder}")
