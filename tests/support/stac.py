"""Validation of STAC without a network: the core and every extension that an object names, references included."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft7Validator, FormatChecker
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

from kiln.io import storage
from tests import DATA

CORE = "https://schemas.stacspec.org/v1.0.0/{0}-spec/json-schema/{0}.json"
KINDS = {"Feature": "item", "Collection": "collection", "Catalog": "catalog"}


@cache
def schemas() -> Registry:
    """Return all schemas by their ids. One that is not here cannot be resolved."""
    registry: Registry = Registry()
    for path in sorted((DATA / "stac").rglob("*.json")):
        schema = json.loads(path.read_text())
        registry = registry.with_resource(schema["$id"].rstrip("#"), Resource.from_contents(schema, DRAFT7))
    return registry


def stac_errors(value: dict[str, Any]) -> list[str]:
    """Return what is invalid in a STAC object. Raise an error for an extension whose schema is not here."""
    uris = [CORE.format(KINDS[value["type"]]), *value.get("stac_extensions", [])]
    errors = []
    for uri in uris:
        schema = schemas().get_or_retrieve(uri).value.contents
        validator = Draft7Validator(schema, registry=schemas(), format_checker=FormatChecker())
        for error in validator.iter_errors(value):
            best = min(error.context, key=lambda e: -len(e.absolute_path)) if error.context else error
            errors.append(f"{uri}: {list(best.absolute_path)}: {best.message[:300]}")
    return errors


def assert_valid(value: dict[str, Any]) -> None:
    """Fail with what is invalid in a STAC object."""
    assert stac_errors(value) == []


def stac_objects(product: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and content of the STAC files of a product, a path or s3://; the collection first."""
    names = [uri.removeprefix(storage.join(str(product), "")) for uri in storage.listing(str(product))]
    for name in sorted(name for name in names if name.endswith(".json")):
        yield name, json.loads(storage.read_bytes(storage.join(str(product), name)))
