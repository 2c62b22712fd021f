"""Kiln's code as one small file in a run's bucket. Jobs fetch and run it, so a changed line needs no new image."""

import hashlib
import io
import zipfile
from pathlib import Path

from kiln.errors import ConfigError

ROOT = Path(__file__).parents[2]  # the checkout
PACKAGES = ("kiln", "scripts")
PATTERNS = ("*.py", "*.json", "*.toml")
PAGE = "kiln/explorer/web/page/"  # left out: no job serves the explorer
EPOCH = (1980, 1, 1, 0, 0, 0)  # the time of every file, so that equal code gives equal bytes

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


def build(root: Path = ROOT) -> tuple[bytes, str]:
    """Zip the packages `kiln` and `scripts`.

    Args:
        root: The checkout.

    Returns:
        The zip file and its sha256. They are equal for equal files, whenever and wherever it is built.

    Raises:
        ConfigError: `root` is not a checkout, as for an installed Kiln, which has no scripts.
    """
    if not (root / "scripts/array_job.py").is_file():
        raise ConfigError(
            f"{root}: expected a checkout of Kiln, whose scripts the jobs run, got an installed package. Change to a "
            "checkout's folder, and run `python -m kiln ...` there."
        )
    paths = {p for package in PACKAGES for pattern in PATTERNS for p in (root / package).rglob(pattern)}
    files = {name: path for path in paths if not (name := path.relative_to(root).as_posix()).startswith(PAGE)}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, files[name].read_bytes())
    return buffer.getvalue(), hashlib.sha256(buffer.getvalue()).hexdigest()


def command(uri: str, sha256: str, module: str, *arguments: str) -> list[str]:
    """Return the command of a container that runs a module of the bundle.

    Args:
        uri: s3:// URI of the bundle.
        sha256: Its digest, which the container checks.
        module: The module to run.
        *arguments: The module's arguments.
    """
    return ["python", "-c", BOOTSTRAP, uri, sha256, module, *arguments]
