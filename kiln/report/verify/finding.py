"""A damaged file of a run, and what makes it anew."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kiln.errors import AccessError, ConfigError, KilnError, SourceError, TransientError, WeightsError


@dataclass(frozen=True)
class Finding:
    """A damaged file.

    Attributes:
        file: Its path or s3://.
        problem: What is wrong.
        delete: Files to delete, so that the next run makes them anew.
        targets: What to ask Snakemake for, before everything else; none where the run itself asks for it.
        is_of_run: Whether Snakemake makes the file; false for a cache, which the explorer makes.
    """

    file: str
    problem: str
    delete: tuple[str, ...]
    targets: tuple[str, ...] = ()
    is_of_run: bool = True


@dataclass(frozen=True)
class Check:
    """The verification of a file, with those that belong to it.

    Attributes:
        file: Its path or s3://.
        problems: Yields what is wrong, one file after the other.
    """

    file: str
    problems: Callable[[], Iterator[Finding]]


def problem_of(work: Callable[[], object], uri: str) -> str | None:
    """Return what is wrong with a file by the error of its reader; None without an error.

    Raises:
        TransientError, AccessError, StorageError: The file cannot be read now, which says nothing about it.
    """
    try:
        work()
    except (TransientError, AccessError):
        raise
    except (SourceError, ConfigError, WeightsError) as e:
        return str(e).removeprefix(f"{uri}: ")
    except KilnError:
        raise
    return None
