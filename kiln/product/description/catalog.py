"""The STAC catalog of a run: one file that links the collections of all products."""

import json
import logging
from collections.abc import Sequence

import pystac

from kiln.errors import SourceError
from kiln.io import storage
from kiln.product.description.stac import COLLECTION, relative_address
from kiln.product.description.stac_fields import STAC_VERSION, Json
from kiln.product.record import RECORD_NAME, product_folder

CATALOG = "catalog.json"
log = logging.getLogger(__name__)


def write_catalog(run: str, datasets: Sequence[str], products: Sequence[str]) -> str:
    """Write catalog.json below a run.

    It links one product of each partition: that of `products`, and of other partitions the newest that was merged. A
    run of some partitions thus leaves the others in the catalog. All links are relative, so that a copy of the run's
    folder to another place is complete.

    Args:
        run: Path or s3:// of the run's folder.
        datasets: Names of the datasets' folders in it.
        products: Folders of products of the run.

    Returns:
        Path or s3:// of the file.

    Raises:
        SourceError: If a product has no collection.
    """
    by_partition = {_partition(product): product for product in [*_merged_products(run, datasets), *products]}
    uri = storage.join(run, CATALOG)
    catalog = _catalog(run, sorted(by_partition.values()))
    storage.write_bytes(uri, (json.dumps(catalog, indent=1, sort_keys=True) + "\n").encode())
    return uri


def check_catalog(run: str) -> None:
    """Raise SourceError unless the catalog of a run is as it was written for the products that it links.

    Args:
        run: Path or s3:// of the run's folder.
    """
    uri = storage.join(run, CATALOG)
    try:
        written = json.loads(storage.read_bytes(uri))
        links = [link["href"] for link in written["links"] if link["rel"] == "child"]
        products = [storage.join(run, href.removeprefix("./").removesuffix(f"/{COLLECTION}")) for href in links]
        if written != _catalog(run, products):
            raise ValueError("other values")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SourceError) as e:
        raise SourceError(f"{uri}: expected the catalog of the run, got another file ({str(e)[:120]}).") from e


def _partition(product: str) -> str:
    """Return the folder of a product's partition."""
    return product.rstrip("/").rpartition("/")[0]


def _merged_products(run: str, datasets: Sequence[str]) -> list[str]:
    """Return the folders of all products below a run that have a record, the oldest first."""
    products: list[tuple[int, str]] = []
    for name in datasets:
        folder = storage.join(run, name, "products")
        files = storage.listing(folder)
        for uri, stat in files.items():
            partition, _, file = uri.removeprefix(storage.join(folder, "")).partition("/")
            if not partition or not RECORD_NAME.fullmatch(file):
                continue
            if storage.join(product_folder(uri), COLLECTION) in files:
                products.append((stat.modified, product_folder(uri)))
            else:
                log.warning("%s: its product is gone, and is left out of the catalog. Delete the record.", uri)
    return [product for _, product in sorted(products)]


def _catalog(run: str, products: Sequence[str]) -> Json:
    """Return the catalog of products."""
    catalog = pystac.Catalog(
        id=run.rstrip("/").rpartition("/")[2],
        title="Clay embeddings",
        description=f"Products of a run of Kiln: {len(products)} collections.",
    )
    value: Json = catalog.to_dict(include_self_link=False) | {"stac_version": STAC_VERSION}
    value["links"] = [{"rel": "root", "href": f"./{CATALOG}", "type": "application/json"}]
    for product in products:
        uri = storage.join(product, COLLECTION)
        title = json.loads(storage.read_bytes(uri))["title"]
        href = f"./{relative_address(uri, run)}"
        value["links"].append({"rel": "child", "href": href, "type": "application/json", "title": title})
    return value
