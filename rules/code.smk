# CODE, the folder of this version's code: jobs import `kiln` and `scripts` from there. No rules.
import contextlib
import subprocess
import tempfile

from snakemake.sourcecache import HostingProviderFile, LocalGitFile, LocalSourceFile


def code_folder(rules):
    """Return the folder above `rules`. A version that is read from git is unpacked once, below .snakemake."""
    if isinstance(rules, LocalSourceFile):
        return Path(rules.get_path_or_uri(secret_free=False)).absolute().parent
    if not isinstance(rules, (LocalGitFile, HostingProviderFile)):
        raise WorkflowError(f"{rules}: expected a path, gitfile(...), github(...) or gitlab(...), got another address.")
    repository = rules.repo_path if isinstance(rules, LocalGitFile) else rules.hosted_repo.repo.git_dir
    git = ["git", "-C", str(repository)]
    version = f"{rules.ref}:{rules.path.rpartition('/')[0]}"
    tree = subprocess.run([*git, "rev-parse", version], check=True, capture_output=True, text=True).stdout.strip()
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


CODE = str(code_folder(workflow.current_basedir))
IS_MODULE = workflow.modifier.is_module
