"""Verification of products: every file is compared with the record."""

import hashlib
import json
from collections.abc import Collection, Iterator

import pyarrow.compute as pc

from kiln.errors import ConfigError, SourceError
from kiln.formats.json_digest import read_with_digest
from kiln.formats.ledger import LEDGER_COUNTS, read_ledger
from kiln.formats.parquet import read_footer_of
from kiln.io import storage
from kiln.product.record import ProductRecord, check_part, check_part_content, product_folder, read_record
from kiln.report.verify.finding import Check, Finding, problem_of


def product_check(record_uri: str, files: Collection[str]) -> Check:
    """Return the check of a product's record, parts, ledger, STAC files and data card."""

    def problems() -> Iterator[Finding]:
        delete = (record_uri,)  # the next merge writes all other files again
        records: list[ProductRecord] = []
        if problem := problem_of(lambda: records.append(_read_record(record_uri)), record_uri):
            yield Finding(record_uri, problem, delete)
            return
        (record,) = records
        folder = product_folder(record_uri)
        for name in [*(file.name for file in record.files), record.ledger.name, *record.documents]:
            uri = storage.join(folder, name)
            if uri not in files:
                yield Finding(uri, "expected a file of the product, got none.", delete)
            elif problem := problem_of(lambda name=name: _check_file(folder, record, name), uri):  # type: ignore[misc]  # typed by its default
                yield Finding(uri, problem, delete)

    return Check(record_uri, problems)


def _read_record(uri: str) -> ProductRecord:
    """Return a record. Raises ConfigError if it is damaged, or its name is not that of its content."""
    record = read_record(uri)
    try:
        read_with_digest(storage.read_bytes(uri))
    except ValueError as e:
        raise ConfigError(f"{uri}: expected the record that was written, got another one ({e}).") from e
    return record


def _check_file(folder: str, record: ProductRecord, name: str) -> None:
    """Raise SourceError unless a file of a product is as its record states."""
    uri = storage.join(folder, name)
    with storage.local_copy(uri) as path:
        for file in record.files:
            if file.name == name:
                check_part_content(folder, file, path)
                check_part(folder, file, path.stat().st_size, read_footer_of(path, uri).num_rows)
        if name == record.ledger.name:
            if (sha256 := storage.sha256(path)) != record.ledger.sha256:
                raise SourceError(f"{uri}: expected sha256 {record.ledger.sha256} as in its record, got {sha256}.")
            ledger = read_ledger(path, uri)
            counts = {count: pc.sum(ledger[count]).as_py() or 0 for count in LEDGER_COUNTS}
            if counts != record.counts:
                raise SourceError(f"{uri}: expected the counts of the record, got {counts}.")
        if name in record.documents:
            _check_document(uri, path.read_bytes(), record.document_sha256.get(name))


def _check_document(uri: str, data: bytes, sha256: str | None) -> None:
    """Raise SourceError unless a document has its digest. Without one, as of an older Kiln, it must be JSON or text."""
    if sha256 is not None:
        if (present := hashlib.sha256(data).hexdigest()) != sha256:
            raise SourceError(f"{uri}: expected sha256 {sha256} as in its record, got {present}.")
        return
    try:
        json.loads(data) if uri.endswith(".json") else data.decode()
    except ValueError as e:
        raise SourceError(f"{uri}: expected a document, got a damaged file ({e}).") from e
