"""pyproject.toml holds the one list of dependencies, constraints.txt its pins, environment.yml points at both."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ddimlib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", CONSTRAINTS, flags=re.MULTILINE)
}
REQUIREMENTS = [
    *PROJECT["dependencies"],
    *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
]


@pytest.mark.parametrize("line", REQUIREMENTS)
def test_every_requirement_is_pinned_at_a_version_that_it_allows(line):
    requirement = Requirement(line)
    pin = PINS.get(canonicalize_name(requirement.name))
    assert pin is not None, f"{requirement.name} is not in constraints.txt: run `make pins`"
    assert requirement.specifier.contains(pin, prereleases=True), f"{line} does not allow the pin {pin}"


def test_constraints_hold_names_and_versions_only():
    lines = [line for line in CONSTRAINTS.splitlines() if not line.startswith("#")]
    assert lines == [
        f"{name}=={version}" for name, version in re.findall(r"^([\w.-]+)==([\w.]+)$", "\n".join(lines), re.M)
    ]
    assert len(lines) == len(PINS)


def test_environment_yml_points_at_both_and_lists_nothing_else():
    python, pip, by_pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert pip == "pip"
    assert Requirement(PROJECT["name"] + PROJECT["requires-python"]).specifier.contains(python.removeprefix("python="))
    constraint, project = by_pip["pip"]
    assert constraint == "-c constraints.txt"
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", project)[1].split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_make_commands_in_the_documents_exist(document):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", (ROOT / document).read_text(), flags=re.MULTILINE))
    assert named, f"{document} should name the commands"
    assert named <= targets


def test_the_version_and_the_licence_are_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == ddimlib.__version__ == citation["version"]
    assert PROJECT["license"] == citation["license"]
    assert (ROOT / "LICENSE").read_text().startswith(f"{PROJECT['license']} License")


def test_importing_the_library_does_not_import_torchvision():
    """It takes as long as torch itself, and a notebook that draws samples does not need it."""
    code = "import sys, ddimlib, ddimlib.evaluation, ddimlib.plotting; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_file_of_the_library_uses_only_files_above_it():
    """In the order of the API's page, which says so; the files of `storage` and `provenance` come before all that write."""
    order = re.findall(
        r"automodule:: ddimlib\.(\w+)", (ROOT / "book" / "appendix" / "api.md").read_text(encoding="utf-8")
    )
    files = {path.stem for path in (ROOT / "ddimlib").glob("*.py")} - {"__init__", "__main__", "storage", "provenance"}
    assert set(order) == files
    for i, name in enumerate(order):
        used = re.findall(
            r"^from ddimlib\.(\w+) import", (ROOT / "ddimlib" / f"{name}.py").read_text(encoding="utf-8"), re.M
        )
        assert set(used) <= {*order[:i], "storage", "provenance"}, name
