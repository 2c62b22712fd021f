"""Requests of the API as typed values: filters and points of a query string, bodies of searches and exports."""

import json
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.requests import Request

from kiln.errors import ConfigError
from kiln.explorer.chips import BoundingBox
from kiln.explorer.filters import ChipFilter, parse_box
from kiln.explorer.search import Query
from kiln.formats.validation import validate

MAX_BODY_BYTES = 2 << 20
MAX_RESULTS = 500  # of a search from the page
MAX_JSON_ERROR_CHARACTERS = 120
B = TypeVar("B", bound=BaseModel)


class SearchBody(BaseModel):
    """The body of /api/search. `Query` checks the ranges of its values, and `ChipFilter.from_json` the filters."""

    model_config = ConfigDict(extra="forbid", strict=True)

    likes: list[str] = []
    dislikes: list[str] = []
    method: str = "mean"
    k: int = 50
    apart_km: float | None = None
    filters: Any = None

    def query(self) -> Query:
        """Return the search. Raises ConfigError for values out of range."""
        if not 1 <= self.k <= MAX_RESULTS:
            raise ConfigError(f"search: expected 1 to {MAX_RESULTS} results, got {self.k}.")
        return Query(
            likes=tuple(self.likes),
            dislikes=tuple(self.dislikes),
            method=self.method,
            k=self.k,
            apart_km=self.apart_km or 0.0,
            chip_filter=ChipFilter.from_json(self.filters or {}),
        )


class ExportBody(SearchBody):
    """The body of /api/export: a search and the format of its results."""

    format: Literal["geojson", "geoparquet"] = "geojson"
    embeddings: bool = False


def query_filter(parameters: dict[str, str]) -> ChipFilter:
    """Return the filter of a query string without its other parameters. Raises ConfigError for an invalid one."""
    return ChipFilter.from_address(parameters)


def parse_bbox(text: str) -> BoundingBox:
    """Return the bounding box of `west,south,east,north` in degrees. Raises ConfigError for an invalid one."""
    return parse_box(text.split(","))


def parse_point(text: str) -> tuple[float, float]:
    """Return longitude and latitude of `lon,lat` in degrees. Raises ConfigError for other text."""
    try:
        lon, lat = (float(v) for v in text.split(","))
    except ValueError:
        raise ConfigError(f"at: expected longitude,latitude in degrees, got {text[:40]!r}. Correct it.") from None
    return lon, lat


async def read_body(request: Request, model: type[B]) -> B:
    """Return the JSON body of a request as a model.

    Args:
        request: The request.
        model: The pydantic model of the body.

    Returns:
        The body.

    Raises:
        HTTPException: 415 for another content type, 413 for too many bytes, 400 for anything but a JSON object.
        ConfigError: The object does not fit the model.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "Content-Type: expected application/json. Send JSON.")
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            raise HTTPException(
                413,
                f"request: expected at most {MAX_BODY_BYTES >> 20} MB, got more. Send fewer marks or a simpler area.",
            )
    try:
        value = json.loads(bytes(data), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as e:
        raise HTTPException(400, f"request: expected JSON, got an error: {str(e)[:MAX_JSON_ERROR_CHARACTERS]}") from e
    if not isinstance(value, dict):
        raise HTTPException(400, "request: expected a JSON object, got another value")
    return validate(model, value, request.url.path.removeprefix("/api/"))


def _refuse_constant(name: str) -> None:
    """Raise ValueError: JSON has no NaN and no Infinity."""
    raise ValueError(f"{name} is not a JSON number")
