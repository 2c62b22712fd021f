"""Command-line flags for the keys of a config section, made from its pydantic model."""

import argparse
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel

from kiln.formats.validation import Location, validate

T = TypeVar("T", bound=BaseModel)


def add_section_flags(parser: argparse.ArgumentParser, model: type[BaseModel], keys: Sequence[str]) -> None:
    """Add one flag per key: `--chip-size` for `chip_size`. Types, ranges and choices are checked by `read_section`."""
    group = parser.add_argument_group((model.__doc__ or "").strip().splitlines()[0].rstrip("."))
    for key in keys:
        field = model.model_fields[key]
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": (field.description or "").replace("%", "%%")}
        origin, arguments = get_origin(field.annotation), get_args(field.annotation)
        if field.annotation is bool:
            options["action"] = "store_true"
        elif origin is Literal:
            options["choices"] = arguments
        elif origin is list:
            options["nargs"] = "*"
        group.add_argument(f"--{key.replace('_', '-')}", dest=key, **options)


def read_section(model: type[T], values: dict[str, Any]) -> T:
    """Return the section of the given flags, defaults for the others. Raises ConfigError for the first wrong value."""
    return validate(model, values, name=_flag)


def _flag(location: Location) -> str:
    return "--" + str(location[0]).replace("_", "-")
