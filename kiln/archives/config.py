"""The base of the archives' config sections, as pydantic models.

The models are the single source of the JSON schemas, of the table in config/README.md, of the defaults and comments in
config/config.yaml, and of the flags of the plan and embed scripts. A dry run reads the generated schemas only.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.config import JsonDict


def _split_numbers(value: Any) -> Any:
    """Return the parts of `W,S,E,N`, as a command line gives a bounding box; other values as they are."""
    return value.split(",") if isinstance(value, str) and "," in value else value


Bbox = Annotated[list[float], BeforeValidator(_split_numbers), Field(min_length=4, max_length=4)]
Region = Annotated[str, Field(pattern="^[a-z]{2}(-[a-z]+)+-[0-9]+$")]
VALUE: JsonDict = {"fingerprint": True}  # marks a key that changes vectors
UNIQUE: JsonDict = {"uniqueItems": True}


class Section(BaseModel):
    """A section of the config. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_serialization_defaults_required=True)


class ArchiveConfig(Section):
    """The keys that every archive's section has."""

    archive: str = Field(min_length=1, description="root of the archive's files: a folder, https:// or s3://")
    archive_region: Region | None = Field(
        None, description="AWS region of an s3:// archive; null asks S3 where jobs run on AWS"
    )
    chip_size: int = Field(
        ge=8, multiple_of=8, description="side of a chip in pixels, a multiple of 8", json_schema_extra=VALUE
    )
    max_nodata: float = Field(
        0.05,
        ge=0,
        le=1,
        description="fraction of a chip's pixels that may be nodata; other chips are skipped and counted",
        json_schema_extra=VALUE,
    )
    metadata: str
    gsd: Literal["as_trained", "actual"] = Field(
        "as_trained",
        description="pixel size that the model is given: `as_trained` or `actual`",
        json_schema_extra=VALUE,
    )
