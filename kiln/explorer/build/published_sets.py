"""Sets of embedding files that others published (`index.published`): their layouts, columns and model."""

import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from kiln.archives.registry import archives
from kiln.errors import ConfigError
from kiln.formats.fingerprint import digest

LAYOUTS_FILE = Path(__file__).with_name("published_layouts.toml")


@dataclass(frozen=True)
class Columns:
    """Names of a file's columns; without `id`, rows are numbered."""

    vector: str
    geometry: str = "geometry"
    id: str | None = None
    datetime: str | None = None
    item: str | None = None


@dataclass(frozen=True)
class Layout:
    """A kind of published files: columns, and what their names and footers hold. See published_layouts.toml."""

    columns: Columns
    year_in_name: re.Pattern[str] | None = None
    composite: bool = False
    date_in_footer: str | None = None
    source_in_footer: str | None = None


@cache
def layouts() -> dict[str, Layout]:
    """Return the known layouts by name."""
    names = {f.name for f in fields(Columns)}
    known = {}
    for name, values in tomllib.loads(LAYOUTS_FILE.read_text()).items():
        columns = Columns(**{k: v for k, v in values.items() if k in names})
        rest: dict[str, Any] = {k: v for k, v in values.items() if k not in names}
        if "year_in_name" in rest:
            rest["year_in_name"] = re.compile(rest["year_in_name"])
        known[name] = Layout(columns, **rest)
    return known


@dataclass(frozen=True)
class PublishedSet:
    """An entry of `index.published`: files of one model, which become one dataset.

    Attributes:
        name: Name of the dataset.
        files: Folder, s3:// prefix, pattern, or one file.
        model: Name of the vector space. All sets and products of a database have one model, one `weights` and one
            `embedding`, if they are known.
        layout: Name of a layout; or `columns`.
        columns: The columns of files without a known layout.
        year: Year of rows without a time.
        weights: sha256 of the checkpoint.
        embedding: Kind of the vectors; `class` for the class token.
    """

    name: str
    files: str
    model: str
    layout: str | None = None
    columns: Columns | None = None
    year: int | None = None
    weights: str | None = None
    embedding: str | None = None

    @property
    def mapping(self) -> Columns:
        """Names of the columns."""
        return self.columns or layouts()[self.layout or ""].columns

    @property
    def facts(self) -> Layout:
        """What names and footers of the files hold."""
        return layouts()[self.layout] if self.layout else Layout(self.mapping)

    @property
    def space(self) -> str:
        """What stands for the digest of the weights: the digest of the model's name if they are unknown."""
        return self.weights or digest(["published", self.model])

    def metadata(self, dim: int) -> dict[str, Any]:
        """Return the dataset's `kiln` metadata in the explorer table, for vectors of length `dim`."""
        values = {f.name: getattr(self, f.name) for f in fields(PublishedSet) if f.name != "columns"}
        columns = {f.name: getattr(self.mapping, f.name) for f in fields(Columns)}
        return {
            "dataset": self.name,
            "fingerprint": digest([values, columns, dim]),
            "model": self.model,
            "weights_sha256": self.space,
            "embedding": self.embedding,
            "dimensions": dim,
            "untrained": False,
            "published": {"files": self.files, "layout": self.layout, "columns": columns},
        }


def read_sets(values: Any) -> list[PublishedSet]:
    """Parse `index.published`. Raise ConfigError, naming the entry, for an unknown or missing value."""
    if not isinstance(values, list) or not all(isinstance(v, dict) for v in values):
        raise ConfigError("index.published: expected a list of entries with name, files, model and layout.")
    sets = [_read_set(v) for v in values]
    if twice := [n for n, count in Counter(s.name for s in sets).items() if count > 1]:
        raise ConfigError(f"index.published: expected different names, got {twice[0]} twice. Rename one.")
    return sets


def _read_set(values: Mapping[str, Any]) -> PublishedSet:
    where = f"index.published: {values.get('name', 'an entry without name')}"
    given = {k: v for k, v in values.items() if v is not None}
    known = ", ".join(layouts())
    if unknown := set(given) - {f.name for f in fields(PublishedSet)}:
        raise ConfigError(f"{where}: unknown {', '.join(sorted(unknown))}. Remove it.")
    if missing := [n for n in ("name", "files", "model") if not isinstance(given.get(n), str) or not given[n]]:
        raise ConfigError(f"{where}: {missing[0]} is missing. Add it.")
    if given["name"] in archives():
        raise ConfigError(f"{where}: expected a name that no archive of Kiln has. Choose another one.")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", given["name"]):
        raise ConfigError(f"{where}: expected a name of a-z, 0-9, dot, dash and underscore. Choose another one.")
    if ("layout" in given) == ("columns" in given):
        raise ConfigError(f"{where}: expected either a layout of {known}, or columns.")
    if "layout" in given and given["layout"] not in layouts():
        raise ConfigError(f"{where}: expected a layout of {known}, got {given['layout']!r}.")
    if "columns" in given:
        try:
            given["columns"] = Columns(**given["columns"])
        except TypeError as e:
            raise ConfigError(
                f"{where}: columns: expected vector, and any of geometry, id, datetime, item ({e})."
            ) from e
    return PublishedSet(**given)
