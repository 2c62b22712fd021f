"""Validation by pydantic models, with errors as the rest of Kiln words them."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kiln.errors import ConfigError

MAX_VALUE_CHARACTERS = 80
M = TypeVar("M", bound=BaseModel)


def validate(model: type[M], value: Any, where: str) -> M:
    """Return a value as an instance of a pydantic model.

    Args:
        model: The model.
        value: What was given, such as parsed JSON.
        where: What the value is, for the error.

    Returns:
        The instance.

    Raises:
        ConfigError: The value does not fit the model; the error names the first field that does not.
    """
    try:
        return model.model_validate(value)
    except ValidationError as e:
        raise ConfigError(_message(e.errors()[0], model, where)) from e


def _message(error: Mapping[str, Any], model: type[BaseModel], where: str) -> str:
    path = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        names = ", ".join(model.model_fields) if len(error["loc"]) == 1 else "another name"
        return f"{where}: expected {names}, got {_shorten(path)}. Remove it."
    if error["type"] == "missing":
        return f"{where}: expected {path}, got none. Add it."
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"{where}: expected an object, got {_shorten(error['input'])}. Correct it."
    expected = error["msg"].removeprefix("Value error, expected ").removeprefix("Input should be ")
    place = f"{where}: {path}" if path else where
    return f"{place}: expected {expected}, got {_shorten(error['input'])}. Correct it."


def _shorten(value: Any) -> str:
    """Return a value as printable text of bounded length."""
    text = "".join(c if c.isprintable() else " " for c in repr(value)[:MAX_VALUE_CHARACTERS])
    return text if len(text) < MAX_VALUE_CHARACTERS else f"{text}..."
