"""The lab, its image and one run of three datasets, once for all tests; where it cannot be, they fail and say why."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.batch import lab as labs
from tests.batch import story as stories
from tests.batch.image import Image, built


@pytest.fixture(scope="session")
def lab() -> Iterator[labs.Lab]:
    with labs.running() as started:
        yield started


@pytest.fixture(scope="session")
def image(lab: labs.Lab, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Kiln's image of this working tree, for CPUs, on the lab's base."""
    return built(lab, tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="session")
def story(lab: labs.Lab, image: Image, tmp_path_factory: pytest.TempPathFactory) -> stories.Story:
    """Three datasets from archives on S3 to a database on S3, with what may befall a run on the way."""
    folder: Path = tmp_path_factory.mktemp("story")
    return stories.told(lab, image, folder)
