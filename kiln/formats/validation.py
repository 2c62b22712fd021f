"""Validation by pydantic models, with errors as the rest of Kiln words them."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kiln.errors import ConfigError

MAX_VALUE_CHARACTERS = 80
EXPECTED = {  # by pydantic's type of the error, with its context
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dataclass_type": "an object",
    "date_from_datetime_parsing": "a day, YYYY-MM-DD",
    "dict_type": "an object",
    "extra_forbidden": "no such key",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_attributes_type": "an object",
    "model_type": "an object",
    "multiple_of": "a multiple of {multiple_of}",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_short": "at least {min_length} characters",
    "string_type": "text",
    "too_long": "at most {max_length} values",
    "tuple_type": "a list",
    "too_short": "at least {min_length} values",
    "unexpected_keyword_argument": "no such key",
}
M = TypeVar("M", bound=BaseModel)
Location = tuple[int | str, ...]


def dotted(location: Location) -> str:
    """Return the place of a field as `outer.inner`."""
    return ".".join(map(str, location))


def validate(model: type[M], value: Any, where: str = "", name: Callable[[Location], str] = dotted) -> M:
    """Return a value as an instance of a pydantic model.

    Args:
        model: The model.
        value: A mapping of the model's fields, such as parsed JSON.
        where: What the value is. Errors begin with it.
        name: Returns how errors name a field.

    Returns:
        The instance.

    Raises:
        ConfigError: If the value does not fit the model. The error names the first field that does not.
    """
    try:
        return model.model_validate(value)
    except ValidationError as e:
        raise ConfigError(_message(e.errors()[0], model, where, name)) from e


def first_problem(e: ValidationError) -> str:
    """Return the first error of a file's validation as `field: expected this, got that`."""
    error = e.errors()[0]
    where = dotted(error["loc"])
    if error["type"] == "json_invalid":
        return f"expected JSON, got {error['msg'].removeprefix('Invalid JSON: ')}"
    if error["type"] == "missing":
        return f"{where}: expected a value, got none"
    return ": ".join(filter(None, (where, f"expected {_expected(error)}, got {_shorten(error['input'])}")))


def _message(error: Mapping[str, Any], model: type[BaseModel], where: str, name: Callable[[Location], str]) -> str:
    field = name(error["loc"]) if error["loc"] else ""
    given = _shorten(error["input"])
    if error["type"] == "extra_forbidden":
        names = ", ".join(model.model_fields) if len(error["loc"]) == 1 else "another name"
        return ": ".join(filter(None, (where, f"expected {names}, got {_shorten(field)}. Remove it.")))
    if error["type"] == "missing":
        return ": ".join(filter(None, (where, f"expected {field}, got none. Add it.")))
    return ": ".join(filter(None, (where, field, f"expected {_expected(error)}, got {given}. Correct it.")))


def _expected(error: Mapping[str, Any]) -> str:
    if error["type"] in EXPECTED:
        limits = {key: f"{v:g}" if isinstance(v, float) else v for key, v in error.get("ctx", {}).items()}
        return EXPECTED[error["type"]].format(**limits)
    message: str = error["msg"]
    return message.removeprefix("Value error, ").removeprefix("expected ").removeprefix("Input should be ")


def _shorten(value: Any) -> str:
    """Return a value as printable text of bounded length."""
    text = "".join(c if c.isprintable() else " " for c in repr(value)[:MAX_VALUE_CHARACTERS])
    return text if len(text) < MAX_VALUE_CHARACTERS else f"{text}..."
