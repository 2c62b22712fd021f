"""The config section of ESA WorldCover's composites."""

from typing import Annotated, Literal

from pydantic import Field

from kiln.archives.config import UNIQUE, VALUE, ArchiveConfig, Bbox


class Config(ArchiveConfig):
    """ESA WorldCover's Sentinel-2 composites."""

    archive: str = Field(
        "s3://esa-worldcover-s2/rgbnir",
        min_length=1,
        description="root that holds the years' folders: a folder, https:// or s3://. The real one is "
        "`s3://esa-worldcover-s2/rgbnir`, read without credentials. Not part of the fingerprint, since a mirror "
        "has the same pixels: take another `run` for other pixels",
    )
    years: list[Annotated[int, Field(ge=2020, le=2021)]] = Field(
        [2020, 2021], min_length=1, description="composites to embed, of 2020 and 2021", json_schema_extra=UNIQUE
    )
    region: Literal["conus"] | Bbox = Field(
        "conus",
        description="`conus`: the published 1359 columns of 609 rows; or `[west, south, east, north]` in "
        "degrees: every chip of the lattice that it touches. west > east crosses the antimeridian",
    )
    pixels_per_degree: int = Field(
        12000,
        ge=8,
        le=12000,
        description="pixels per degree of the archive: 12000, fewer for samples; divides 12000",
        json_schema_extra=VALUE,
    )
    chip_size: int = Field(
        512,
        ge=8,
        multiple_of=8,
        description="side of a chip in pixels, a multiple of 8; the published run took 512",
        json_schema_extra=VALUE,
    )
    encode: Literal["whole", "quarters"] = Field(
        "whole",
        description="`whole`: a chip is a row. `quarters`: a chip is four rows, closer to the 256 px of the "
        "training and cheaper by area; ids end in `:q0` to `:q3`",
        json_schema_extra=VALUE,
    )
    columns_per_shard: int = Field(
        8, ge=1, description="neighbouring columns that one job embeds; a job should be worth minutes"
    )
    metadata: Literal["zeros", "as_published"] = Field(
        "zeros",
        description="date and place that the model is given: `zeros` (unknown: the median of a year has no "
        "week) or `as_published` (June 1st)",
        json_schema_extra=VALUE,
    )
