"""Run notebooks top to bottom and store their outputs, with nothing in the file that changes from run to run.

python tools/run_notebooks.py book/05-few-steps.ipynb ...     (default: every notebook in _toc.yml)
"""

import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from twin import KERNEL_ARGUMENTS

ROOT = Path(__file__).resolve().parent.parent
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def normalise(notebook: nbformat.NotebookNode) -> None:
    """The same kernel, language and cell ids everywhere; no times, no state of an editor."""
    jupytext = notebook.metadata.get("jupytext")
    notebook.metadata = nbformat.from_dict(METADATA | ({"jupytext": jupytext} if jupytext else {}))
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        for key in ("execution", "collapsed", "scrolled", "ExecuteTime"):
            cell.metadata.pop(key, None)


def run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    # Kernels start in the notebook's folder, as in JupyterLab and under the tests.
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False, coalesce_streams=True,
                            extra_arguments=KERNEL_ARGUMENTS,
                            resources={"metadata": {"path": str(path.parent)}})  # fmt: skip
    begin = time.perf_counter()
    client.execute()
    seconds = time.perf_counter() - begin
    normalise(notebook)
    nbformat.write(notebook, path)
    print(f"{path}: {seconds:.0f} s")


if __name__ == "__main__":
    shown = re.findall(r"file: (\S+)", (ROOT / "_toc.yml").read_text())
    every = (path for name in shown if (path := ROOT / f"{name}.ipynb").exists())
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else sorted(every):
        run(path)
