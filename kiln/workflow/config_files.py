"""Generate what is derived from the config models: JSON schemas, config/config.yaml and the table in config/README.md.

Run `python -m kiln.workflow.config_files` from the project's root after a change of a model. A test fails when a file
is out of date.
"""

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kiln.archives.registry import BUILT_IN, archives, section_schema
from kiln.workflow.config import SCHEMA
from kiln.workflow.config_model import Config, PictureService, PicturesSection

WIDTH = 118  # characters of a comment line
TABLE_START, TABLE_END = "<!-- generated: keys -->\n", "<!-- end of generated part -->\n"
AFTER = "model"  # the shared section that the archives' sections follow
HEAD = """\
Kiln's defaults: the sample run that `make demo` does on a laptop, in a minute or two.
A real run is a small file of its own (see conus.yaml) given with --configfile; what it does not say is taken from here.
Generated from the models in kiln/workflow/config_model.py and kiln/archives/*/config.py. (F) marks keys that change
vectors: they are part of the fingerprint."""
EXAMPLES = {
    "index.published": """\
published:
  - name: field-survey # the dataset's name in the explorer
    files: s3://bucket/mine/*.parquet # folder, s3:// prefix, pattern or one file
    columns: {vector: embedding, geometry: geometry, id: id, datetime: when, item: scene}
    model: my model # datasets of other models are never searched together
    year: 2024 # where neither rows nor files state it""",
}


def generate(root: Path) -> dict[Path, str]:
    """Return the text of every generated file by its path below the project's root."""
    readme = root / "config" / "README.md"
    before, rest = readme.read_text().split(TABLE_START)
    after = rest.split(TABLE_END)[1]
    files = {
        root / "kiln" / "workflow" / SCHEMA: _json(section_schema(Config)),
        root / "config" / "config.yaml": config_yaml(),
        readme: f"{before}{TABLE_START}{table()}{TABLE_END}{after}",
    }
    for archive in _built_in():
        files[archive.schema_file] = _json(section_schema(archive.load("config", "Config")))
    return files


def _built_in() -> list[Any]:
    return [archive for archive in archives().values() if archive.module in BUILT_IN]


def _json(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def _default(path: str, field: FieldInfo) -> Any:
    """Return a key's value in config.yaml: that of the sample run."""
    section, _, key = path.partition(".")
    sample = archives()[section].sample if section in archives() else {}
    return sample.get(key, field.get_default(call_default_factory=True))


def _sections() -> Iterator[tuple[str, FieldInfo | None, type[BaseModel] | None]]:
    """Yield the top-level keys in order: name, field and, for a section, its model."""
    for name, field in Config.model_fields.items():
        yield name, field, _model_of(field)
        if name == AFTER:
            for archive in _built_in():
                yield archive.name, None, archive.load("config", "Config")


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the model of a field that is a section; None for a value, list or optional."""
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _changes_vectors(field: FieldInfo | None) -> bool:
    extra = field.json_schema_extra if field else None
    return isinstance(extra, dict) and bool(extra.get("fingerprint"))


def config_yaml() -> str:
    """Return config/config.yaml: every key with its default and its description as a comment."""
    lines = [*(f"# {line}" for line in HEAD.splitlines()), ""]
    for name, field, model in _sections():
        if model is None and field is not None:
            lines += _yaml_value(name, field, _default(name, field), "")
        elif model is not None:
            lines += ["", f"# {_first_line(model)}", f"{name}:", *_yaml_section(model, "  ", name), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


def _yaml_section(model: type[BaseModel], indent: str, path: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        section = _model_of(field)
        if section is not None:
            yield f"{indent}# {_first_line(section)}"
            yield f"{indent}{name}:"
            yield from _yaml_section(section, indent + "  ", f"{path}.{name}")
        else:
            yield from _yaml_value(name, field, _default(f"{path}.{name}", field), indent)
        for line in EXAMPLES.get(f"{path}.{name}", "").splitlines():
            yield f"{indent}# {line}"
    if model is PicturesSection:
        for archive in _built_in():
            yield f"{indent}{archive.name}:"
            yield from _yaml_section(PictureService, indent + "  ", f"{path}.{archive.name}")


def _yaml_value(name: str, field: FieldInfo, value: Any, indent: str) -> Iterator[str]:
    mark = "(F) " if _changes_vectors(field) else ""
    comment = f"{mark}{field.description}"
    yield from (f"{indent}# {line}" for line in textwrap.wrap(comment, WIDTH - len(indent), break_on_hyphens=False))
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").rstrip()
    yield f"{indent}{name}: {text}"


def table() -> str:
    """Return the table of config/README.md: key, whether it changes vectors, meaning and default."""
    rows = ["| key | | default | meaning |", "|---|---|---|---|"]
    for name, field, model in _sections():
        if model is not None:
            rows.append(f"| `{name}` | | | {_first_line(model)} |")
            rows += _table_section(model, name)
        elif field is not None:
            rows.append(_row(name, field))
    return "\n".join(rows) + "\n"


def _table_section(model: type[BaseModel], path: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        section = _model_of(field)
        if section is None:
            yield _row(f"{path}.{name}", field)
            for item in _item_models(field):
                yield from _table_section(item, f"{path}.{name}[]")
        else:
            yield f"| `{path}.{name}` | | | {_first_line(section)} |"
            yield from _table_section(section, f"{path}.{name}")
    if model is PicturesSection:
        yield from _table_section(PictureService, f"{path}.<dataset>")


def _item_models(field: FieldInfo) -> list[type[BaseModel]]:
    """Return the models of a list's items, or of an optional value."""
    arguments = getattr(field.annotation, "__args__", ())
    return [a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)]


def _row(path: str, field: FieldInfo) -> str:
    mark = "F" if _changes_vectors(field) else ""
    value = "required" if field.is_required() else f"`{json.dumps(_default(path, field))}`"
    return f"| `{path}` | {mark} | {value} | {field.description} |"


if __name__ == "__main__":
    for path, text in generate(Path()).items():
        path.write_text(text)
        print(path)
