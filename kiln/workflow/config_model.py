"""The config of a run, as pydantic models: the sections that all archives share.

The archives' sections are in `kiln/archives/<name>/config.py`. `kiln.workflow.config_files` generates the JSON schema,
the table in config/README.md and config/config.yaml from these models.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from kiln.archives.config import UNIQUE, VALUE, Bbox, Section
from kiln.archives.registry import archives

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class OptionalSection(Section):
    """A section that a config of one's own writes: keys with a default may be left out."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_serialization_defaults_required=False)


class UntrainedSection(Section):
    """The random encoder that stands in for a checkpoint."""

    seed: int = Field(7, ge=0, description="seed of the random weights", json_schema_extra=VALUE)
    dim: int = Field(192, ge=16, multiple_of=4, description="length D of a vector", json_schema_extra=VALUE)
    depth: int = Field(4, ge=1, description="number of transformer blocks", json_schema_extra=VALUE)
    heads: int = Field(3, ge=1, description="attention heads; divides `dim`", json_schema_extra=VALUE)
    mlp_ratio: int = Field(4, ge=1, description="width of the MLP over `dim`", json_schema_extra=VALUE)


class ModelSection(Section):
    """The encoder's weights."""

    checkpoint: str = Field(
        "untrained",
        min_length=1,
        description="https://, s3:// or path of Clay's `clay-v1.5.ckpt`; `untrained` takes seeded random "
        "weights. The real "
        "one: `https://huggingface.co/made-with-clay/Clay/resolve/main/v1.5/clay-v1.5.ckpt`",
        json_schema_extra=VALUE,
    )
    sha256: Digest | None = Field(
        None,
        description="digest that the checkpoint must have. Without it, plans and dry runs work, and "
        "`encoder_weights`, which prints the line to paste",
        json_schema_extra=VALUE,
    )
    precision: Literal["float32", "bfloat16", "int8"] = Field(
        "float32",
        description="precision of weights and arithmetic. `int8`, on x86 CPUs, quantises the matrices behind each "
        "LayerNorm: a fifth to a third faster than float32, and rounded. `kiln compare` measures what that costs on a "
        "shard that was embedded both ways",
        json_schema_extra=VALUE,
    )
    untrained: UntrainedSection = Field(
        UntrainedSection(), description="the random encoder that stands in for a checkpoint", json_schema_extra=VALUE
    )


class SelectSection(Section):
    """What goes into the explorer database; null takes all."""

    datasets: list[str] | None = Field(None, description="names of datasets")
    partitions: list[str] | None = Field(None, description="merge partitions, as `['2021', 'nd-2019', '29R-2020-02']`")
    years: list[int] | None = Field(None, description="years of acquisition")
    embedding: Literal["class", "mean"] | None = Field(
        None,
        description="the vectors to search with; null: the class token, or the mean for products of "
        "`embedding: mean`. The "
        "two are never in one database",
    )
    bbox: Bbox | None = Field(
        None,
        description="`[west, south, east, north]` of the chips' centres in degrees; west > east crosses the "
        "antimeridian",
    )
    max_rows: int = Field(
        5_000_000,
        ge=1,
        description="maximum number of chips; more are refused, never cut. A million 1024-d chips take 2 GB",
    )


class ColumnsSection(OptionalSection):
    """The columns of published files in a layout that Kiln does not know."""

    vector: str = Field(description="lists or tensors of numbers")
    geometry: str = Field("geometry", description="WKB, points or polygons")
    id: str | None = Field(None, description="unique in the entry; rows are numbered without it")
    datetime: str | None = Field(None, description="times, dates, or texts of them")
    item: str | None = Field(None, description="scene or tile")


class PublishedSection(OptionalSection):
    """Embedding files by others, of one model and layout."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9._-]*$", description="the dataset's name, in front of every `chip_id`")
    files: str = Field(
        min_length=1,
        description="a folder or s3:// prefix (`.parquet`, `.geoparquet` and `.gpq` at any depth), a pattern "
        "with `*`, or one "
        "file",
    )
    layout: str | None = Field(
        None,
        description="a known layout of columns: see docs/explorer.md",
    )
    columns: ColumnsSection | None = Field(None, description="for another layout, the names of the columns")
    model: str = Field(
        min_length=1,
        description="the vector space, in your words. A database holds one: datasets of other models, weights "
        "or lengths need "
        "a `run` of their own",
    )
    year: Annotated[int, Field(ge=1900, le=2100)] | None = Field(
        None, description="year of all rows, where neither they nor the files state it"
    )
    weights: Digest | None = Field(None, description="sha256 of the checkpoint, if known")
    embedding: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="`class` for the class token, if known. With `weights` and `model: Clay v1.5` the rows are "
        "searched together "
        "with Kiln's own products of these weights",
    )


class IndexSection(Section):
    """The explorer database."""

    select: SelectSection = Field(SelectSection(), description="what goes into it; null takes all")
    published: list[PublishedSection] = Field(
        [],
        description="embedding files by others, taken in as they are, each entry a dataset of the explorer; with "
        "`datasets: []` alone. `index.select.years`, `bbox` and `max_rows` apply to them too. New and changed "
        "files are read "
        "when the index runs (`snakemake index -R build_index`)",
    )


class WmsSection(OptionalSection):
    """A Web Map Service."""

    url: str = Field(pattern="^https?://", description="address before the query")
    version: Literal["1.1.1", "1.3.0"] = Field(description="protocol version; 1.3.0 swaps the axes of EPSG:4326")
    layers: str = Field(description="layer names")
    crs: Literal["EPSG:3857", "EPSG:4326"] = Field("EPSG:3857", description="CRS of the request")
    styles: str = Field("", description="sent even when empty, as the standard demands")
    format: Literal["image/png", "image/jpeg"] = Field("image/png", description="format of the picture")
    time: str | None = Field(None, description="TIME parameter")


class PictureService(OptionalSection):
    """Where pictures of a dataset's chips come from."""

    wms: WmsSection | None = Field(
        None,
        description="a Web Map Service (`url`, `version`, `layers`, `crs`, `styles`, `format`, `time`); null, "
        "or when it fails: "
        "the chip's own source",
    )


class PicturesSection(Section):
    """Where pictures of chips come from; a key of a dataset's name holds its service."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, PictureService]

    neighbours: int = Field(10, ge=1, le=50, description="neighbours on the run's contact sheet")


class PlanSection(Section):
    """Rates and prices of the estimate that `snakemake plan` prints."""

    chips_per_second: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="rate of one job's encoder, where jobs run on other machines; null: that of the run's finished "
        "jobs, else the one that `kiln tune` measured on this machine, else hours and price are unknown",
    )
    price_per_hour: float = Field(0.10, ge=0, description="price of one job's machine, in any currency")
    price_per_gb_month: float = Field(0.023, ge=0, description="price of storage")
    price_per_gb_moved: float = Field(
        0.02,
        ge=0,
        description="price of transfer between AWS regions; who pays for a public archive is up to the archive",
    )


class ResourcesSection(Section):
    """What one job takes. `batch_size`, `embed_threads` and `device` may change the last bits of a vector."""

    embed_threads: int = Field(1, ge=1, description="threads of an embedding job's encoder")
    embed_mem_mb: int = Field(4000, ge=500, description="memory of an embedding job in MB")
    merge_mem_mb: int = Field(
        2000, ge=500, description="memory of a merge or index job in MB; the merge sorts in half of it"
    )
    batch_size: int = Field(16, ge=1, description="chips encoded together")
    read_threads: int = Field(
        2, ge=1, description="threads that read and decode ahead of the encoder; more than cores for a remote archive"
    )
    read_ahead_mb: int = Field(
        256,
        ge=16,
        description="pixels held ahead of the encoder in MB; a job also holds the blocks under a row of chips",
    )
    device: str = Field(
        "cpu",
        pattern="^(cpu|cuda(:[0-9]+)?)$",
        description="`cpu`, `cuda` (each job takes a GPU that no other job holds) or `cuda:N`",
    )


class Config(Section):
    """The config of a run. The archives' sections stand between `model` and `vector_dtype`."""

    run: str = Field(
        "sample", pattern="^[a-z0-9][a-z0-9._-]*$", description="name of the run; its results are in `results/<run>/`"
    )
    datasets: list[str] = Field(
        default_factory=lambda: list(archives()),
        description="archives to embed; the sections of others are not read. A config of your own must name "
        "them, or the "
        "sample's are embedded too",
        json_schema_extra=UNIQUE,
    )
    partitions: list[Annotated[str, Field(min_length=1)]] = Field(
        [],
        description="patterns of merge partitions to embed, merge and index, as `['nd-*', '2021', "
        "'29R-2020-*']`; `[]` takes "
        "all. `snakemake --config partitions=\"['nd-*']\"` embeds one state of a plan of all",
        json_schema_extra=UNIQUE,
    )
    model: ModelSection = Field(ModelSection(), description="the encoder's weights")
    vector_dtype: Literal["float32", "float16", "int8"] = Field(
        "float16",
        description="dtype of the vectors in the files. `int8` comes with a scale per row in the column "
        "`scale`: number = "
        "int8 * scale. A million class tokens of 1024 numbers take 3.4, 1.9 and 0.97 GB; recall@10 against "
        "float32 is 1, "
        "0.9994 and 0.981",
        json_schema_extra=VALUE,
    )
    embedding: Literal["class", "mean", "both"] = Field(
        "class",
        description="what `embeddings` holds: `class`, the class token; `mean`, the mean of the patch tokens; "
        "`both` in one "
        "pass, the mean then in `embeddings_mean` (its scale in `scale_mean`)",
        json_schema_extra=VALUE,
    )
    patches: bool = Field(
        False,
        description="`true`: also all patch tokens of a chip as float16, in `<shard>.patches.parquet`: 2 MB "
        "per chip of 256 px. "
        "They are not merged",
        json_schema_extra=VALUE,
    )
    max_failed_fraction: float = Field(
        0.5,
        ge=0,
        le=1,
        description="fraction of a shard's units that may fail before the shard fails; a partly failed unit "
        "counts by its "
        "failed fraction",
    )
    allow_missing: bool = Field(
        False,
        description="`true`: embed nothing, merge and index the shards that exist; the products state what is missing",
    )
    allow_cross_region: bool = Field(
        False,
        description="`true`: jobs on AWS may read an archive in another region, and the cost is reported; "
        "`false`: they are not "
        "submitted",
    )
    index: IndexSection = Field(IndexSection(), description="the explorer database")
    pictures: PicturesSection = Field(PicturesSection(), description="where pictures of chips come from")
    plan: PlanSection = Field(
        PlanSection(), description="rates and prices of the estimate that `snakemake plan` prints"
    )
    resources: ResourcesSection = Field(ResourcesSection(), description="what one job takes")
