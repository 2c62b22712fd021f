"""The command that started a run, which the run keeps, so that `kiln status` prints commands that run as printed."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from kiln.errors import ConfigError
from kiln.formats.json_digest import KEY, with_digest
from kiln.io import storage

NAME = "command.json"  # in the folder of the run
FOUND = ("Snakefile", "workflow/Snakefile")  # of which Snakemake takes the first that its working folder has


@dataclass(frozen=True)
class RunCommand:
    """How Snakemake was called for a run.

    Attributes:
        config_files: Absolute paths of its config files.
        config: Values of `--config`, as KEY=VALUE.
        options: Other options that belong to the run, as `--profile aws-batch`.
        snakefile: Absolute path of the Snakefile; empty if it is unknown.
        partitions: Patterns of the partitions that the run is limited to; none takes all.
        allow_missing: Whether nothing is embedded, and products are made of the shards that are there.
        price_per_hour: Price of one job's machine; None if it is unknown.
    """

    config_files: Sequence[str] = ()
    config: Sequence[str] = ()
    options: Sequence[str] = field(default_factory=tuple)
    snakefile: str = ""
    partitions: Sequence[str] = ()
    allow_missing: bool = False
    price_per_hour: float | None = None

    @classmethod
    def read(cls, run: str) -> Self:
        """Return the command that a run's folder keeps, a path or s3://. Raises ConfigError for another file."""
        uri = storage.join(run, NAME)
        try:
            values = json.loads(storage.read_bytes(uri))
            return cls(**{name: value for name, value in values.items() if name != KEY})
        except (ValueError, TypeError, AttributeError) as e:
            raise ConfigError(f"{uri}: expected the command of a run, got another file ({e}). Delete it.") from e

    def write(self, run: str) -> None:
        """Write the command to a run's folder, a path or s3://."""
        storage.write_bytes(storage.join(run, NAME), (json.dumps(with_digest(asdict(self)), indent=1) + "\n").encode())

    @property
    def missing_files(self) -> list[str]:
        """The files of the command that this machine does not have, as for a run that another one began."""
        return [path for path in (self.snakefile, *self.config_files) if path and not Path(path).exists()]

    def flags(self) -> list[str]:
        """Return the flags of Snakemake. Paths below the working folder are relative to it."""
        found = next((name for name in FOUND if Path(name).exists()), "")
        snakefile = _short(self.snakefile) if self.snakefile else found
        flags = [] if snakefile == found else ["--snakefile", snakefile]
        flags += self.options
        if self.config_files:
            flags += ["--configfile", *map(_short, self.config_files)]
        return flags + (["--config", *self.config] if self.config else [])


def _short(path: str) -> str:
    """Return a path relative to the working folder, if it lies below it."""
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path
