"""The lab, its image and the scenario of three datasets, once for all tests. If one fails to start, its tests fail."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.batch import lab as labs
from tests.batch import scenario as scenarios
from tests.batch.image import Image, build_image


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests without containers first, while the image is built."""
    items.sort(key=needs_image)


def needs_image(item: pytest.Item) -> bool:
    """Return whether a test uses the image."""
    return "image" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def lab() -> Iterator[labs.Lab]:
    """The running lab."""
    with labs.running() as started:
        yield started


@pytest.fixture(scope="session", autouse=True)
def building(
    lab: labs.Lab, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Future[Image] | None]:
    """The build of the image, in a thread; None if no test needs the image."""
    if not any(map(needs_image, request.session.items)):
        yield None
        return
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(build_image, lab, tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="session")
def image(building: Future[Image]) -> Image:
    """Kiln's image of this working tree, for CPUs, on the lab's base image."""
    built = building.result()
    size, base = built.size / 1e9, built.base / 1e9
    print(f"image of envs/Dockerfile: {size:.2f} GB, {size - base:.2f} GB more than its base")
    return built


@pytest.fixture(scope="session")
def scenario(lab: labs.Lab, image: Image, tmp_path_factory: pytest.TempPathFactory) -> scenarios.Scenario:
    """A run of three datasets with failures, from archives on S3 to a database on S3."""
    folder: Path = tmp_path_factory.mktemp("scenario")
    return scenarios.run_scenario(lab, image, folder)
