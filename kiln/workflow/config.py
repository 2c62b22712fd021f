"""Checking a run's config against the generated schemas, before anything else runs.

Every dry run imports this module, so it reads the schemas as JSON and imports no pydantic.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema

from kiln.archives.registry import archives
from kiln.errors import ConfigError

SCHEMA = "config.schema.json"


def load_config(files: Sequence[Path]) -> dict[str, Any]:
    """Read config files as Snakemake does: a later file's keys replace an earlier one's, section by section.

    Raises:
        ConfigError: A file is missing or is not a mapping in YAML.
    """
    import yaml  # a dry run gets its config from Snakemake

    config: dict[str, Any] = {}
    for file in files:
        try:
            values = yaml.safe_load(file.read_text()) or {}
        except (OSError, ValueError, yaml.YAMLError) as e:
            raise ConfigError(f"{file}: expected a config file, got none that can be read ({e}). Correct it.") from e
        if not isinstance(values, dict):
            raise ConfigError(f"{file}: expected `key: value` lines, got {type(values).__name__}. Correct it.")
        config = _merge(config, values)
    return config


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
