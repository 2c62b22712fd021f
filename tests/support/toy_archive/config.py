"""The config section of the toy archive."""

from typing import Literal

from pydantic import Field

from kiln.archives.config import VALUE, ArchiveConfig


class Config(ArchiveConfig):
    """Tiles in NumPy files."""

    archive: str = Field("toy", min_length=1, description="folder of the years' folders")
    years: list[int] = Field([], description="years to embed; `[]` takes all")
    tiles_per_shard: int = Field(2, ge=1, description="approximate number of tiles that one job embeds")
    chip_size: int = Field(16, ge=8, multiple_of=8, description="side of a chip in pixels", json_schema_extra=VALUE)
    metadata: Literal["as_trained", "zeros"] = Field(
        "as_trained", description="date and place that the model receives", json_schema_extra=VALUE
    )
