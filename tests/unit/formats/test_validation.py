"""Errors of pydantic models in Kiln's words."""

from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from kiln.errors import ConfigError
from kiln.formats.validation import dotted, validate


class Inner(BaseModel):
    size: int = Field(8, ge=8, multiple_of=8)


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: Inner = Inner()
    fraction: float = Field(0.5, ge=0, lt=1)
    years: list[int] = Field([2020], min_length=1, max_length=2)
    state: str = Field("nd", pattern="^[a-z]{2}$")
    kind: Literal["class", "mean"] = "class"
    keep: bool = False
    needed: str


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {"size": 12}}, "request: inner.size: expected a multiple of 8, got 12. Correct it."),
        ({"inner": {"size": 0}}, "request: inner.size: expected 8 or more, got 0. Correct it."),
        ({"inner": {"size": "x"}}, "request: inner.size: expected a whole number, got 'x'. Correct it."),
        ({"inner": {"size": 8.5}}, "request: inner.size: expected a whole number, got 8.5. Correct it."),
        ({"inner": 3}, "request: inner: expected an object, got 3. Correct it."),
        ({"fraction": 1}, "request: fraction: expected less than 1.0, got 1. Correct it."),
        ({"fraction": []}, "request: fraction: expected a number, got []. Correct it."),
        ({"years": []}, "request: years: expected at least 1 values, got []. Correct it."),
        ({"years": [1, 2, 3]}, "request: years: expected at most 2 values, got [1, 2, 3]. Correct it."),
        ({"years": 2020}, "request: years: expected a list, got 2020. Correct it."),
        ({"state": "ndx"}, "request: state: expected text that matches ^[a-z]{2}$, got 'ndx'. Correct it."),
        ({"state": 1}, "request: state: expected text, got 1. Correct it."),
        ({"kind": "both"}, "request: kind: expected 'class' or 'mean', got 'both'. Correct it."),
        ({"keep": "perhaps"}, "request: keep: expected true or false, got 'perhaps'. Correct it."),
        ({"needed": None}, "request: needed: expected text, got None. Correct it."),
        ({"more": 1}, "expected inner, fraction, years, state, kind, keep, needed, got 'more'. Remove it."),
    ],
)
def test_an_error_names_field_expectation_and_value(values: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(Outer, {"needed": "x", **values}, "request")
    assert str(error.value).endswith(message)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^request: expected needed, got none\. Add it\.$"):
        validate(Outer, {}, "request")


def test_a_field_is_named_as_the_caller_wants() -> None:
    with pytest.raises(ConfigError, match=r"^naip\.years: expected a list, got 1\. Correct it\.$"):
        validate(Outer, {"needed": "x", "years": 1}, name=lambda field: dotted(("naip", *field)))


def test_a_long_value_is_shortened_and_printable() -> None:
    with pytest.raises(ConfigError) as error:
        validate(Outer, {"needed": "x", "state": "\x1b[31m" + "a" * 10_000})
    assert len(str(error.value)) < 200
    assert "\x1b" not in str(error.value)


def test_a_valid_value_is_an_instance() -> None:
    assert validate(Outer, {"needed": "x", "inner": {"size": 16}}).inner.size == 16
