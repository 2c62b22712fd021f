"""The sample run of `make demo`: its content is pinned, and the documents' Python examples run in its folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.support.sample_run import PINS, content_digests
from tests.workflow.workflow import Run


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the finished sample run. Tests must not change it."""
    folder = tmp_path_factory.mktemp("sample")
    environment = Run(folder).environment(PYTHONPATH=str(ROOT))
    make = [sys.executable, "-m", "kiln.sample", "--out", "sample"]
    subprocess.run(make, cwd=folder, env=environment, check=True, capture_output=True)
    snakemake = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "--directory", str(folder)]
    done = subprocess.run(
        [*snakemake, "--cores", "2"], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout
    return folder


def test_the_content_of_the_sample_is_pinned(sample: Path) -> None:
    """A change of a digest here changes what users get: CHANGELOG.md must name it.

    `python -m tests.support.sample_run results/sample` writes the pins again.
    """
    assert content_digests(sample / "results/sample") == json.loads(PINS.read_text())


@pytest.mark.parametrize("document", ["README.md", "docs/api.md"])
def test_the_python_examples_of_a_document_run(sample: Path, document: str) -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.S)
    assert examples
    names = [f"{document}, example {n}" for n in range(len(examples))]
    runs = [f"exec(compile({code!r}, {name!r}, 'exec'), {{}})" for code, name in zip(examples, names, strict=True)]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(runs)],
        cwd=sample, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
