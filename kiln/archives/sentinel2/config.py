"""The config section of Sentinel-2 L2A."""

from typing import Annotated, Literal

from pydantic import Field

from kiln.archives.config import UNIQUE, VALUE, ArchiveConfig, Bbox

Name = Annotated[str, Field(min_length=1)]


class Config(ArchiveConfig):
    """Scenes of Sentinel-2 L2A."""

    items: Name | None = Field(
        None,
        description="first of three sources of items: a list of keys and URLs of STAC items, one a line, plain "
        "or gzip; path, https:// or s3://",
    )
    search: Annotated[str, Field(pattern="^https?://")] | None = Field(
        None,
        description="second source: landing page of a STAC API, as `https://earth-search.aws.element84.com/v1`",
    )
    collection: Name = Field("sentinel-2-l2a", description="collection to search in the STAC API")
    inventory: Name | None = Field(None, description="third source: `manifest.json` of the bucket's S3 inventory")
    inventory_root: Name | None = Field(
        None, description="root of the keys of the inventory's parts; null: where the manifest lies"
    )
    archive: str = Field(
        "s3://sentinel-cogs",
        min_length=1,
        description="root of the bucket's keys: `s3://sentinel-cogs`, or a copy of it; not part of the fingerprint",
    )
    rewrite: list[Annotated[str, Field(pattern="^[^=]+=.+$")]] = Field(
        [],
        description="`OLD=NEW` prefixes: addresses in items that begin with OLD are read from NEW; the first "
        "that fits counts; end both with `/` to name whole folders",
    )
    area: Name | None = Field(
        None,
        description="GeoJSON file; takes items that meet any of it (from an inventory or list: whose tile meets it)",
    )
    bbox: Bbox | None = Field(
        None, description="`[west, south, east, north]` in degrees; west > east crosses the antimeridian"
    )
    dates: Annotated[str, Field(pattern="^([0-9.-]+/[0-9.-]+|[0-9]{4}-[0-9]{2}-[0-9]{2})$")] | None = Field(
        None, description="first and last day, `2020-01-01/2020-12-31`, `..` for an open end; or one day"
    )
    years: list[Annotated[int, Field(ge=2015, le=2100)]] = Field(
        [], description="years of acquisition; `[]` takes all", json_schema_extra=UNIQUE
    )
    months: list[Annotated[int, Field(ge=1, le=12)]] = Field(
        [], description="months of acquisition, 1 to 12; `[]` takes all", json_schema_extra=UNIQUE
    )
    tiles: list[str | int] = Field(
        [],
        description="MGRS tiles, grid zones or zones, as `[29RKH, 30T, 31]`; `[]` takes all",
        json_schema_extra=UNIQUE,
    )
    max_cloud_cover: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None,
        description="maximum cloud cover of an item in percent, as the item states it; items from a list or "
        "inventory are read for it",
    )
    items_per_shard: int = Field(
        20, ge=1, description="items that one job embeds, about; of one grid zone and month, never twice as many"
    )
    chip_size: int = Field(
        256,
        ge=8,
        multiple_of=8,
        description="side of a chip in pixels of 10 m, a multiple of 8; the model was trained on 256",
        json_schema_extra=VALUE,
    )
    max_cloud: float = Field(
        0.5,
        ge=0,
        le=1,
        description="fraction of a chip's valid pixels that may be cloud or shadow (SCL 1, 3, 8, 9, 10); other "
        "chips are skipped and counted apart",
        json_schema_extra=VALUE,
    )
    offset_max_dark_fraction: float = Field(
        0.005,
        ge=0,
        le=1,
        description="fraction of clear pixels below 1000 above which the offset of baseline 04.00 counts as "
        "removed already, even if the item states otherwise",
        json_schema_extra=VALUE,
    )
    metadata: Literal["as_trained", "zeros"] = Field(
        "as_trained",
        description="date and place that the model is given: `as_trained` or `zeros`",
        json_schema_extra=VALUE,
    )
