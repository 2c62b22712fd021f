"""The code of jobs: equal code gives equal bytes, and a job runs only the code that was submitted."""

import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from kiln.aws import code_bundle
from kiln.errors import ConfigError
from kiln.io import storage


def test_equal_code_is_an_equal_bundle(tmp_path: Path) -> None:
    first, digest = code_bundle.build()
    for n in range(2):
        root = tmp_path / str(n)
        for package in code_bundle.PACKAGES:
            shutil.copytree(code_bundle.ROOT / package, root / package)
        for path in root.rglob("*"):
            os.utime(path, (n, n))
        (root / "kiln/__pycache__").mkdir(exist_ok=True)
        (root / "kiln/__pycache__/x.pyc").write_bytes(b"1")
        assert code_bundle.build(root) == (first, digest)
    (root / "kiln/errors.py").write_text("# changed\n")
    assert code_bundle.build(root)[1] != digest
    assert len(first) < 2_000_000, "every job fetches it"


def test_the_bundle_has_all_code_and_data_but_not_the_page() -> None:
    names = set(zipfile.ZipFile(io.BytesIO(code_bundle.build()[0])).namelist())
    root = code_bundle.ROOT
    paths = [p for package in ("kiln", "scripts") for p in (root / package).rglob("*") if p.is_file()]
    files = {p.relative_to(root).as_posix() for p in paths if "__pycache__" not in p.parts}
    page = {name for name in files if name.startswith("kiln/explorer/web/page/")}
    assert page
    assert names == files - page - {"kiln/aws/stack.yaml", "kiln/py.typed"}
    assert {"kiln/__init__.py", "scripts/array_job.py", "kiln/workflow/config.schema.json"} <= names


def test_an_installed_package_has_no_scripts(tmp_path: Path) -> None:
    shutil.copytree(code_bundle.ROOT / "kiln/aws", tmp_path / "kiln/aws")
    with pytest.raises(ConfigError, match="expected a checkout of Kiln"):
        code_bundle.build(tmp_path)


def test_a_job_runs_only_the_code_that_was_submitted(bucket: str) -> None:
    code, sha256 = code_bundle.build()
    storage.write_bytes(f"{bucket}/code.zip", code)
    command = [sys.executable, *code_bundle.command(f"{bucket}/code.zip", sha256, "scripts.array_job", "--help")[1:]]
    done = subprocess.run(command, text=True, capture_output=True, cwd="/", check=True)
    assert "usage: python -m scripts.array_job" in done.stdout
    assert f"code {sha256}" in done.stderr
    storage.write_bytes(f"{bucket}/code.zip", code + b"\n")
    done = subprocess.run(command, text=True, capture_output=True, cwd="/", check=False)
    assert done.returncode == 1
    assert "not the code that was submitted" in done.stderr
