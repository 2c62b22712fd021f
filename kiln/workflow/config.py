"""Checking a run's config against the generated schemas, before anything else runs.

Every dry run imports this module, so it reads the schemas as JSON and imports no pydantic.
"""

import contextlib
import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from kiln.archives.registry import archives
from kiln.errors import ConfigError

SCHEMA = "config.schema.json"
OCTAL = re.compile(r"0_*[0-7][0-7_]*")


def load_config(files: Sequence[Path]) -> dict[str, Any]:
    """Read config files as Snakemake does: a later file's keys replace an earlier one's, section by section.

    Raises:
        ConfigError: A file is missing, is not a mapping in YAML, or fails `check_files`.
    """
    config: dict[str, Any] = {}
    for file in files:
        try:
            values = yaml.safe_load(file.read_text()) or {}
        except (OSError, ValueError, yaml.YAMLError) as e:
            raise ConfigError(f"{file}: expected a config file, got none that can be read ({e}). Correct it.") from e
        check_files([file])
        if not isinstance(values, dict):
            raise ConfigError(f"{file}: expected `key: value` lines, got {type(values).__name__}. Correct it.")
        config = _merge(config, values)
    return config


def check_files(files: Sequence[str | Path]) -> None:
    """Check what a YAML file states but its values no longer show.

    Args:
        files: Config files that can be read.

    Raises:
        ConfigError: If a key stands twice in a section, where YAML drops the first; or for a number with a leading
            zero, which YAML reads as octal.
    """
    for file in files:
        if root := yaml.compose(Path(file).read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            _check_node(root, str(file))


def _check_node(node: yaml.Node, file: str) -> None:
    line = f"{file}, line {node.start_mark.line + 1}"
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":int") and OCTAL.fullmatch(node.value):
        raise ConfigError(
            f"{line}: expected text or a decimal number, got {node.value}, which YAML reads as "
            f"{int(node.value.replace('_', ''), 8)}. Write '{node.value}' for the text."
        )
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_node(item, file)
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            if key.value in lines:
                raise ConfigError(
                    f"{file}, line {key.start_mark.line + 1}: expected a key once, got {key.value!r} a second time, "
                    f"first in line {lines[key.value]}. Join both."
                )
            lines[key.value] = key.start_mark.line + 1
            _check_node(value, file)


def typed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with its numbers as numbers: values within `--config key='{...}'` arrive as texts.

    A text becomes a number, a truth value or null where the schema takes no text. A date becomes its text. Other wrong
    values stay for `check_config`.
    """
    schema = load_schema()
    return {
        key: _typed(value, schema["properties"].get(key, {}), schema.get("$defs", {})) for key, value in config.items()
    }


def _typed(value: Any, schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    definitions = {**definitions, **schema.get("$defs", {})}
    options = list(_options(schema, definitions))
    if isinstance(value, Mapping):
        known = {key: part for option in options for key, part in option.get("properties", {}).items()}
        return {key: _typed(part, known.get(key, {}), definitions) for key, part in value.items()}
    if isinstance(value, list):
        items: Mapping[str, Any] = next((option["items"] for option in options if "items" in option), {})
        return [_typed(item, items, definitions) for item in value]
    types = {option.get("type") for option in options}
    if isinstance(value, date) and "string" in types:
        return value.isoformat()
    if not isinstance(value, str) or not types or "string" in types:
        return value
    with contextlib.suppress(yaml.YAMLError):
        parsed = yaml.safe_load(value)
        if (parsed is None and value != "") or isinstance(parsed, bool | int | float):
            return parsed
    return value


def _options(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the alternatives of a schema, each without references."""
    if "$ref" in schema:
        schema = definitions.get(schema["$ref"].rpartition("/")[2], {})
    if alternatives := schema.get("anyOf"):
        for alternative in alternatives:
            yield from _options(alternative, definitions)
    elif schema:
        yield schema


def _merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section with the new values; sections in it are merged too."""
    merged = dict(old)
    for key, value in new.items():
        section = merged.get(key)
        merged[key] = _merge(section, value) if isinstance(section, Mapping) and isinstance(value, Mapping) else value
    return merged


def complete_config(config: Mapping[str, Any], code: str) -> dict[str, Any]:
    """Return the config of an importing workflow with Kiln's defaults for the keys that it leaves out.

    Args:
        config: The importing workflow's config for Kiln.
        code: Folder of Kiln's code, whose config/config.yaml holds the defaults.
    """
    return _merge(load_config([Path(code) / "config" / "config.yaml"]), config)


@cache
def load_schema() -> dict[str, Any]:
    """Return the JSON schema of the whole config: the shared keys and one section per archive."""
    schema: dict[str, Any] = json.loads(resources.files("kiln.workflow").joinpath(SCHEMA).read_text())
    for name, archive in archives().items():
        schema["properties"][name] = archive.load_schema()
    schema["properties"]["datasets"]["items"] = {"enum": list(archives())}
    return schema


def check_config(config: Mapping[str, Any]) -> None:
    """Check the config's keys, types and ranges.

    The section of an archive that `datasets` does not name may be absent.

    Raises:
        ConfigError: For the first error. The message names the key, the value and what is expected.
    """
    schema = load_schema()
    names = archives()
    embedded = config.get("datasets")
    embedded = embedded if isinstance(embedded, list) else []
    required = [key for key in schema["properties"] if key not in names or key in embedded]
    validator = jsonschema.Draft202012Validator({**schema, "required": required})
    error = jsonschema.exceptions.best_match(validator.iter_errors(dict(config)))
    if error is not None:
        raise ConfigError(f"config: {_describe(error)}")
    for dataset in config["pictures"]:
        if dataset != "neighbours" and dataset not in names:
            known = ("neighbours", *names)
            raise ConfigError(f"config: pictures: unknown key {dataset!r}{_suggest(dataset, known)}")


def _describe(error: jsonschema.ValidationError) -> str:
    """Return one line: where, what is expected, what was given, and what may have been meant."""
    schema = error.schema if isinstance(error.schema, Mapping) else {}
    where = ".".join(str(part) for part in error.absolute_path) or "top level"
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        known = schema.get("properties", {})
        unknown = [key for key in error.instance if key not in known]
        return f"{where}: unknown key {unknown[0]!r}{_suggest(str(unknown[0]), known)}"
    if error.validator == "required":
        return f"{where}: {error.message}. Add it."
    expected = schema.get("description", "")
    return f"{where}: {error.message}.{f' Expected: {expected}.' if expected else ''}"


def _suggest(key: str, known: Any) -> str:
    """Return a hint with the known key that is most like an unknown one."""
    close = difflib.get_close_matches(key, list(known), 1)
    return f". Did you mean {close[0]!r}?" if close else f". Known keys: {', '.join(known)}."
