"""The config section of NAIP."""

from typing import Annotated, Literal

from pydantic import Field

from kiln.archives.config import UNIQUE, VALUE, ArchiveConfig, Bbox


class Config(ArchiveConfig):
    """Aerial scenes of the USDA's NAIP."""

    manifest: str = Field(
        "s3://naip-analytic/manifest.txt",
        min_length=1,
        description="list of the bucket's keys: path, https:// or s3://; plain, gzip or zip. The real one is "
        "`s3://naip-analytic/manifest.txt`. When it has grown under the same name, `snakemake --forcerun "
        "plan_naip` plans again; finished shards stay",
    )
    archive: str = Field(
        "s3://naip-analytic",
        min_length=1,
        description="root of the keys: a folder, https:// or s3://. The real one is `s3://naip-analytic`; its "
        "readers pay, so AWS credentials are needed",
    )
    states: list[Annotated[str, Field(pattern="^[a-z]{2}$")]] = Field(
        [], description="states, two letters each; `[]` takes all", json_schema_extra=UNIQUE
    )
    years: list[Annotated[int, Field(ge=2000, le=2100)]] = Field(
        [], description="years of the keys' paths; `[]` takes all", json_schema_extra=UNIQUE
    )
    resolutions: list[Annotated[int, Field(ge=10, le=999)]] = Field(
        [], description="resolutions of the keys' paths in centimetres; `[]` takes all", json_schema_extra=UNIQUE
    )
    bbox: Bbox | None = Field(
        None,
        description="`[west, south, east, north]` in degrees; takes scenes whose quarter quadrangle, with 300 "
        "m around it, meets it; null takes all",
    )
    scenes_per_shard: int = Field(
        100, ge=1, description="scenes that one job embeds, about; of one state and year, never twice as many"
    )
    chip_size: int = Field(
        256,
        ge=8,
        multiple_of=8,
        description="side of a chip in pixels, a multiple of 8; the model was trained on 256",
        json_schema_extra=VALUE,
    )
    lattice: Literal["scene", "utm"] = Field(
        "scene",
        description="`scene`: chips from each scene's top left. `utm`: one grid of the UTM zone, so that the "
        "same ground is the same chip in every year, resolution and scene; pixels are resampled only where they "
        "do not fall on it",
        json_schema_extra=VALUE,
    )
    lattice_gsd: float = Field(
        1.0, gt=0, le=100, description="metres per pixel of the `utm` lattice", json_schema_extra=VALUE
    )
    edge: Literal["drop", "align"] = Field(
        "drop",
        description="what happens to less than a chip at the right and bottom of the `scene` lattice: `drop` "
        "it, or `align` a last chip with the edge",
        json_schema_extra=VALUE,
    )
    deduplicate: bool = Field(
        False,
        description="`true`: of several chips in one cell of the `utm` lattice, the product keeps the one with "
        "the least nodata, within a state and year; the shards keep all. Needs lattice `utm`",
    )
    metadata: Literal["as_trained", "zeros"] = Field(
        "as_trained",
        description="date and place that the model is given: `as_trained` or `zeros`; a scene without a date "
        "has neither",
        json_schema_extra=VALUE,
    )
