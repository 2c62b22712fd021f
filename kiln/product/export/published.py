"""Export a product in the layout that its archive's embeddings were published in before."""

import importlib.util

from kiln.archives.registry import get_archive
from kiln.errors import ConfigError
from kiln.io import storage
from kiln.product.record import product_folder, read_record

DEFAULT_VERSION = "002"  # of the published series


def export_published(record_uri: str, out: str, version: str = DEFAULT_VERSION) -> list[str]:
    """Write a product in the published layout of its archive.

    Args:
        record_uri: Path or s3:// of the product's record. The product's folder is next to it.
        out: Folder or s3:// to write to.
        version: Version of the published series.

    Returns:
        The names of the written files.

    Raises:
        ConfigError: If the archive has no published layout, or the product does not fit it.
        SourceError: If a file of the product is missing.
    """
    record = read_record(record_uri)
    archive = get_archive(record.dataset)
    if importlib.util.find_spec(f"{archive.module}.export") is None:
        raise ConfigError(
            f"{record_uri}: expected a product of an archive with a published layout, got one of {record.dataset}. "
            "Choose another format."
        )
    folder = product_folder(record_uri)
    parts = [storage.join(folder, file.name) for file in record.files]
    ledger = storage.join(folder, record.ledger.name)
    names: list[str] = archive.load("export", "export_product")(record.partition, parts, ledger, out, version)
    return names
