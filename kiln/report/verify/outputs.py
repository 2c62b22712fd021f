"""Verification of a run's other files: weights, database, pictures and pages, catalog, records of jobs, and caches."""

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from kiln.errors import ConfigError, SourceError, TransientError
from kiln.formats.json_digest import read_with_digest
from kiln.io import storage
from kiln.io.png import read_png_texts
from kiln.product.description.catalog import CATALOG, check_catalog
from kiln.report import html_page
from kiln.report.verify.finding import Check, Finding, problem_of

REPORT_FILE = re.compile(r"pictures/[^/]+/(coverage\.png|ledger\.html|run\.html)")


def weights_check(uri: str) -> Check:
    """Return the check of an encoder's weights by the digest of their tensors."""

    def read() -> None:
        from kiln.model.weights import read_tensors

        with storage.local_copy(uri) as path:
            read_tensors(path)

    def problems() -> Iterator[Finding]:
        if problem := problem_of(read, uri):
            yield Finding(uri, problem, (uri,), ("encoder_weights",))

    return Check(uri, problems)


def database_check(db: str, records: Sequence[str], files: Collection[str]) -> Check:
    """Return the check of the explorer database and of its records.

    Args:
        db: Path or s3:// of the database.
        records: Its records.
        files: All files of the run.
    """

    def problems() -> Iterator[Finding]:
        delete = (*records, *(uri for uri in files if uri.startswith(f"{db}/")))  # a new table is made of the products
        rows: set[int] = set()
        for record in records:
            if problem := problem_of(lambda record=record: rows.add(_read_rows(record)), record):  # type: ignore[misc]  # typed by its default
                yield Finding(record, problem, delete)
        found: dict[str, str] = {}
        if problem := problem_of(lambda: found.update(_damage_of_table(db, rows)), db):
            yield Finding(db, problem, delete)
        for uri, damage in found.items():
            yield Finding(uri, damage, delete)

    return Check(db, problems)


def _read_rows(uri: str) -> int:
    """Return the number of chips by the record of a database. Raises ConfigError unless it is as it was written."""
    try:
        return int(read_with_digest(storage.read_bytes(uri))["rows"])
    except (ValueError, KeyError, TypeError) as e:
        raise ConfigError(f"{uri}: expected the record of a database, got a damaged file ({str(e)[:120]}).") from e


def _damage_of_table(db: str, rows: Collection[int]) -> dict[str, str]:
    """Return what is wrong with files of the tagged version.

    Args:
        db: Path or s3:// of the database.
        rows: Number of its chips by its records.

    Raises:
        SourceError: It cannot be opened, its columns cannot be read, or it has another number of chips.
    """
    from kiln.explorer.build.table_files import damaged_files, newest_version, read_file_digests
    from kiln.explorer.database import ExplorerDatabase

    version = newest_version(db)
    if damage := damaged_files(db, read_file_digests(db, version) or {}):
        return damage
    try:
        opened = ExplorerDatabase(db)
        count = opened.count()
        for name in opened.table.schema.names:
            opened.column(name)
    except (ValueError, RuntimeError, OSError, TransientError) as e:  # what LanceDB raises for damaged files
        if isinstance(e, TransientError) and storage.is_remote(db):
            raise
        raise SourceError(f"{db}: expected a database, got a damaged one ({str(e)[:120]}).") from e
    if rows and count not in rows:
        raise SourceError(f"{db}: expected {min(rows)} chips as in its record, got {count}.")
    return {}


def picture_check(uri: str) -> Check:
    """Return the check of a picture or page of the report, by the checksums in it."""

    def read() -> None:
        data = storage.read_bytes(uri)
        if uri.endswith(".html"):
            if not html_page.is_intact(data):
                raise SourceError(f"{uri}: expected a complete page with its digest, got a damaged one.")
            return
        try:
            read_png_texts(data)
        except ValueError as e:
            raise SourceError(f"{uri}: expected a picture, got {e}.") from e

    def problems() -> Iterator[Finding]:
        if problem := problem_of(read, uri):
            yield Finding(uri, problem, (uri,))

    return Check(uri, problems)


def catalog_check(run: str, files: Collection[str]) -> Check:
    """Return the check of a run's STAC catalog, which is compared with the products that it links."""
    uri = storage.join(run, CATALOG)

    def problems() -> Iterator[Finding]:
        if problem := problem_of(lambda: check_catalog(run), uri):
            yield Finding(uri, problem, (uri, *_report_files(run, files)))

    return Check(uri, problems)


def json_check(run: str, uri: str, files: Collection[str]) -> Check:
    """Return the check of a record of what jobs took, or of the call of the run."""
    pages = _report_files(run, files) if uri.rpartition("/")[0] == f"{run}/runs" else []

    def read() -> None:
        try:
            read_with_digest(storage.read_bytes(uri))
        except ValueError as e:
            raise ConfigError(f"{uri}: expected a record of Kiln, got a damaged file ({str(e)[:120]}).") from e

    def problems() -> Iterator[Finding]:
        if problem := problem_of(read, uri):
            yield Finding(uri, problem, (uri, *pages))

    return Check(uri, problems)


def _report_files(run: str, files: Collection[str]) -> list[str]:
    """Return the map and the pages of a run. The rule that makes them writes catalog and costs too."""
    return [file for file in files if REPORT_FILE.fullmatch(file.removeprefix(f"{run}/"))]


def cache_checks(db: str, cache: Path) -> list[Check]:
    """Return the checks of the matrices of a database in the explorer's cache on this machine, and of all pictures."""
    from kiln.explorer.matrix_cache import matrix_home

    matrices = [path for path in matrix_home(db, cache).glob("*/") if not path.name.startswith(".")]
    return [_matrix_check(path) for path in sorted(matrices)] + [
        _cached_picture_check(path) for path in sorted((cache / "pictures").glob("*.png"))
    ]


def _matrix_check(folder: Path) -> Check:
    def problems() -> Iterator[Finding]:
        from kiln.explorer.matrix_cache import read_matrix_record

        if problem := problem_of(lambda: read_matrix_record(folder), str(folder)):
            files = tuple(str(path) for path in sorted(folder.iterdir()))
            yield Finding(str(folder), problem, files, is_of_run=False)

    return Check(str(folder), problems)


def _cached_picture_check(path: Path) -> Check:
    def problems() -> Iterator[Finding]:
        from kiln.explorer.picture_file import read_picture_info

        if problem := problem_of(lambda: read_picture_info(path.read_bytes()), str(path)):
            yield Finding(str(path), problem, (str(path),), is_of_run=False)

    return Check(str(path), problems)
