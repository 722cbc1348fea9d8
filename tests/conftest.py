"""What takes seconds to start, and more than one file of tests on grading needs."""

import os

import pytest


@pytest.fixture(scope="session")
def sandbox():
    from classroom.sandbox import Sandbox

    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def references():
    from students import SETS

    from classroom.checks import Reference

    os.environ["DDIM_GRADING_SEED"] = "11"
    return {name: Reference(ps) for name, ps in SETS.items()}
