"""Run the tests against each mutation and print the survivors: `python -m tests.mutation [--only TEXT]`."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from tests import ROOT
from tests.mutation.mutations import MUTATIONS, Mutation

TIME_LIMIT_S = 900  # of the tests of one mutation
FAILED = 1  # pytest's status when a test fails; others are errors of the command
WITHOUT_PLUGINS = ("-p", "no:xdist", "-p", "no:cacheprovider")


def copy_tree(folder: Path) -> Path:
    """Copy the files that git knows, and those that it does not ignore; return the copy."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    return folder


def run_tests(tree: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run tests in a copy, up to the first failure. The copy's modules come before the installed ones."""
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", *WITHOUT_PLUGINS, *tests]
    return subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False
    )


def mutated(text: str, mutation: Mutation) -> str:
    """Return a file's text with the mistake. Raises ValueError unless the piece occurs once."""
    if (count := text.count(mutation.old)) != 1:
        raise ValueError(f"{mutation.title}: expected the piece once, got it {count} times. Correct the list.")
    return text.replace(mutation.old, mutation.new)


def survives(tree: Path, mutation: Mutation) -> str:
    """Return why a mutation counts as a survivor; an empty text if a test notices it."""
    path = tree / mutation.path
    sound = path.read_text()
    path.write_text(mutated(sound, mutation))
    try:
        done = run_tests(tree, mutation.tests)
    except subprocess.TimeoutExpired:
        return ""  # the tests hang, which is noticed
    finally:
        path.write_text(sound)
    if done.returncode == FAILED:
        return ""
    return "no test fails" if done.returncode == 0 else f"pytest ended with {done.returncode}: {done.stdout[-500:]}"


def main(argv: list[str] | None = None) -> int:
    """Return 1 if a mutation survives, or a test fails without any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="mutations whose title holds the text")
    parser.add_argument("--jobs", type=int, default=2, help="mutations at a time (default: %(default)s)")
    args = parser.parse_args(argv)
    chosen = [m for m in MUTATIONS if args.only in m.title]
    survivors: list[str] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        trees: SimpleQueue[Path] = SimpleQueue()
        for n in range(args.jobs):
            trees.put(copy_tree(Path(folder) / str(n)))
        for mutation in chosen:
            mutated((ROOT / mutation.path).read_text(), mutation)

        def judge(mutation: Mutation) -> str:
            tree, start = trees.get(), time.monotonic()
            try:
                reason = survives(tree, mutation)
            finally:
                trees.put(tree)
            print(
                f"{'SURVIVES' if reason else 'noticed'} {time.monotonic() - start:4.0f} s  {mutation.title}", flush=True
            )
            return reason

        tree = trees.get()
        files = tuple(sorted({test for m in chosen for test in m.tests}))
        print(f"{len(chosen)} mutations; the tests of {len(files)} files without any", flush=True)
        done = run_tests(tree, files)
        trees.put(tree)
        if done.returncode:
            print(done.stdout[-3000:])
            return 1
        for mutation, reason in zip(chosen, pool.map(judge, chosen), strict=True):
            survivors += [f"{mutation.title}: {reason}"] if reason else []
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutations are noticed", *survivors, sep="\n")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
