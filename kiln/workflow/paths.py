"""The folders of a run, as Snakemake knows them, and where they lie on a disk or a store."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RunPaths:
    """The folders of a run, as Snakemake knows them, and their URIs below the default storage.

    Attributes:
        run: Name of the run.
        storage_root: Prefix of Snakemake's default storage, as `s3://bucket`; empty on a local disk.
        relocate: Maps a path of the run to where a workflow that imports Kiln as a module puts it.
    """

    run: str
    storage_root: str = ""
    relocate: Callable[[str], str] = field(default=str, compare=False)

    @property
    def results(self) -> str:
        """Folder of everything that the run makes but the weights."""
        return f"results/{self.run}"

    @property
    def checkpoints(self) -> str:
        """Folder of the finished units of unfinished shards."""
        return f"checkpoints/{self.run}"

    @property
    def logs(self) -> str:
        """Folder of the jobs' logs."""
        return f"logs/{self.run}"

    @property
    def benchmarks(self) -> str:
        """Folder of the jobs' benchmarks."""
        return f"benchmarks/{self.run}"

    @property
    def costs(self) -> str:
        """Folder of the records of what the run took, by dataset, and below it those of the jobs."""
        return f"{self.results}/runs"

    @property
    def database(self) -> str:
        """Folder of the explorer database."""
        return f"{self.results}/explorer"

    def uri(self, path: str) -> str:
        """Return where a path of the run lies: relocated, and below the default storage, if there is one."""
        place = self.relocate(path)
        return f"{self.storage_root.rstrip('/')}/{place}" if self.storage_root else place

    def exists(self, folder: str) -> bool:
        """Return whether a folder may hold files. A store is not asked while the workflow is parsed."""
        return bool(self.storage_root) or os.path.isdir(self.relocate(folder))  # noqa: PTH112 (called for each job)

    def existing_shards(self, folder: str, names: Sequence[str]) -> list[str]:
        """Return those of the named shards that lie in a folder of the run."""
        from kiln.io import storage  # a dry run that does not ask saves the import of boto3

        files = storage.listing(self.uri(folder)) if self.exists(folder) else {}
        return [name for name in names if f"{self.uri(folder)}/{name}.parquet" in files]
