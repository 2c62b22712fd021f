"""The lab, its image and one run of three datasets, once for all tests; where it cannot be, they fail and say why."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.batch import lab as labs
from tests.batch import story as stories
from tests.batch.image import Image, built


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that run no container go first: the image is built meanwhile."""
    items.sort(key=needs_image)


def needs_image(item: pytest.Item) -> bool:
    return "image" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def lab() -> Iterator[labs.Lab]:
    with labs.running() as started:
        yield started


@pytest.fixture(scope="session", autouse=True)
def building(
    lab: labs.Lab, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Future[Image] | None]:
    """The image under way, if any test asks for it."""
    if not any(map(needs_image, request.session.items)):
        yield None
        return
    with ThreadPoolExecutor(1) as beside:
        yield beside.submit(built, lab, tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="session")
def image(building: Future[Image]) -> Image:
    """Kiln's image of this working tree, for CPUs, on the lab's base."""
    made = building.result()
    print(f"image of envs/Dockerfile: {made.size / 1e9:.2f} GB, {(made.size - made.base) / 1e9:.2f} GB over its base")
    return made


@pytest.fixture(scope="session")
def story(lab: labs.Lab, image: Image, tmp_path_factory: pytest.TempPathFactory) -> stories.Story:
    """Three datasets from archives on S3 to a database on S3, with what may befall a run on the way."""
    folder: Path = tmp_path_factory.mktemp("story")
    return stories.told(lab, image, folder)
