"""The folder of this version's code. The rules run this file by its path, since `kiln` cannot be imported before."""

import contextlib
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from snakemake.exceptions import WorkflowError
from snakemake.sourcecache import HostingProviderFile, LocalGitFile, LocalSourceFile


def code_folder(place: Any) -> Path:
    """Return the folder of the Snakefile. A version that is read from git is unpacked once, below .snakemake.

    Args:
        place: The folder, as Snakemake knows it.

    Raises:
        WorkflowError: If it is neither a path nor in a git repository.
    """
    if isinstance(place, LocalSourceFile):
        return Path(place.get_path_or_uri(secret_free=False)).absolute()
    if not isinstance(place, (LocalGitFile, HostingProviderFile)):
        raise WorkflowError(f"{place}: expected a path, gitfile(...), github(...) or gitlab(...), got another address.")
    repository = place.repo_path if isinstance(place, LocalGitFile) else place.hosted_repo.repo.git_dir
    git = ["git", "-C", str(repository)]
    tree = subprocess.run(
        [*git, "rev-parse", f"{place.ref}:{place.path}"], check=True, capture_output=True, text=True
    ).stdout.strip()
    folder = Path(".snakemake", "kiln", tree[:16]).absolute()
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as unpacked:
            files = subprocess.run([*git, "archive", tree], check=True, capture_output=True).stdout
            subprocess.run(["tar", "-x", "-C", unpacked], input=files, check=True)
            with contextlib.suppress(OSError):  # another process was faster
                Path(unpacked).rename(folder)
            Path(unpacked).mkdir(exist_ok=True)
    return folder
