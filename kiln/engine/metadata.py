"""The fingerprint of a shard, and the `kiln` metadata of its embeddings file."""

import platform
from collections.abc import Mapping
from typing import Any

from kiln.engine.options import EmbedOptions
from kiln.formats import patch_file, vectors
from kiln.formats.fingerprint import fingerprint
from kiln.formats.records import SourceInfo
from kiln.model.identity import RECIPE
from kiln.version import __version__

MODEL = "Clay v1.5"


def given_gsd(info: SourceInfo) -> float | None:
    """Return the pixel size in metres that the model is given for every chip; None if each chip has its own."""
    return info.sensor.gsd if info.gsd == "as_trained" else info.native_gsd


def shard_fingerprint(info: SourceInfo, header: Mapping[str, Any], options: EmbedOptions) -> str:
    """Return the fingerprint of a shard's vectors, in hex.

    Args:
        info: The facts about the source.
        header: The header of the weights file.
        options: The job's options.
    """
    return fingerprint(
        info.dataset,
        sensor=info.sensor,
        recipes=_recipes(info),
        weights=header["sha256"],
        precision=header["precision"],
        dtype=options.vector_dtype,
        embedding=options.embedding,
        patches=options.patches,
        metadata=info.metadata,
        gsd=info.gsd,
        max_nodata=info.max_nodata,
        max_cloud=info.max_cloud,
        lattice=dict(info.lattice),
    )


def shard_metadata(info: SourceInfo, header: Mapping[str, Any], identity: str, options: EmbedOptions) -> dict[str, Any]:
    """Return the `kiln` metadata of a shard's embeddings file, without `sources`.

    Args:
        info: The facts about the source.
        header: The header of the weights file.
        identity: The shard's fingerprint.
        options: The job's options.
    """
    sensor, geometry, gsd = info.sensor, header["geometry"], given_gsd(info)
    metadata = {
        "dataset": info.dataset,
        "partition": info.partition,
        "fingerprint": identity,
        "recipes": _recipes(info),
        "model": MODEL,
        "weights_sha256": header["sha256"],
        "checkpoint": header.get("checkpoint", ""),
        "untrained": bool(header.get("untrained")),
        "embedding": options.embedding,
        "dimensions": geometry["dim"],
        "precision": header["precision"],
        "vector_dtype": options.vector_dtype,
        **vectors.dequantisation_metadata(options.vector_dtype, options.embedding),
        "normalisation": {"bands": sensor.bands, "mean": sensor.mean, "std": sensor.std},
        "wavelengths": sensor.wavelengths,
        "gsd": "actual" if gsd is None else gsd,
        "metadata": info.metadata,
        "chip_size": info.lattice["chip_size"],
        "lattice": dict(info.lattice),
        "limits": {"max_nodata": info.max_nodata, "max_cloud": info.max_cloud},
        "software": _software_versions(),
    }
    if options.patches:
        metadata["patches"] = patch_file.patches_metadata(dict(info.lattice), geometry["patch"], geometry["dim"])
    return metadata


def _recipes(info: SourceInfo) -> dict[str, int]:
    return {"clay": RECIPE, info.dataset: info.recipe}


def _software_versions() -> dict[str, str]:
    """Return the versions of the software that the vectors depend on."""
    import numpy
    import pyarrow
    import rasterio
    import torch

    return {
        "kiln": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "pyarrow": pyarrow.__version__,
        "rasterio": rasterio.__version__,
        "gdal": rasterio.__gdal_version__,
    }
