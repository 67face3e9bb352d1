"""Submissions to grade, made of notebook 03."""

import copy
import json

import pytest

from minids3.course.repository import root
from minids3.grade.submissions.pristine import Pristine
from minids3.grade.submissions.reading import load

NAME = "03_latent_attention"


@pytest.fixture(scope="session")
def pristine():
    return Pristine.read(root() / "notebooks" / f"{NAME}.ipynb")


@pytest.fixture(scope="session")
def _solved():
    return load(root() / "notebooks" / "solutions" / f"{NAME}.ipynb")


@pytest.fixture
def solved(_solved):
    """The solved notebook as plain JSON, free to be changed."""
    return copy.deepcopy(_solved)


@pytest.fixture
def student(pristine):
    """The notebook as students get it."""
    return copy.deepcopy(pristine.notebook)


@pytest.fixture
def save(tmp_path):
    """Write a notebook below ``tmp_path`` and return its path."""

    def write(notebook, *parts):
        path = tmp_path.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(notebook if isinstance(notebook, str) else json.dumps(notebook))
        return path

    return write
