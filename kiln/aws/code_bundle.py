"""Kiln's code as one small file in a run's bucket, fetched and run by jobs: a changed line needs no new image."""

import hashlib
import io
import zipfile
from pathlib import Path

CODE = Path(__file__).parents[1]
LEFT_OUT = {"__pycache__"}
EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file: equal code is equal bytes

# Run as `python -c BOOTSTRAP URI SHA256 MODULE [ARGUMENT ...]` in an image that has Kiln's environment.
BOOTSTRAP = """\
import hashlib, io, runpy, sys, tempfile, zipfile
import boto3
uri, sha256, module = sys.argv[1:4]
bucket, _, key = uri[5:].partition("/")
code = boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
if hashlib.sha256(code).hexdigest() != sha256:
    sys.exit(f"error: {uri}: not the code that was submitted, {sha256}")
folder = tempfile.mkdtemp(prefix="kiln-code-")
zipfile.ZipFile(io.BytesIO(code)).extractall(folder)
print(f"code {sha256}", file=sys.stderr, flush=True)
sys.path.insert(0, folder)
sys.argv[1:4] = []
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def build(code: Path = CODE) -> tuple[bytes, str]:
    """The package `scripts` as a zip file, and its sha256; equal for equal files, whenever and wherever it is built."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(code.rglob("*")):
            if path.is_file() and not LEFT_OUT & set(path.parts):
                entry = zipfile.ZipInfo(f"{code.name}/{path.relative_to(code).as_posix()}", EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, path.read_bytes())
    return made.getvalue(), hashlib.sha256(made.getvalue()).hexdigest()


def command(uri: str, sha256: str, module: str, *arguments: str) -> list[str]:
    """What a container runs: the module, from the package at an s3:// URI."""
    return ["python", "-c", BOOTSTRAP, uri, sha256, module, *arguments]
