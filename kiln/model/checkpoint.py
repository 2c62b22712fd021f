"""Clay's checkpoint: fetched, verified by its digest, and extracted once into memory-mappable safetensors."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kiln.errors import ConfigError, SourceError, WeightsError
from kiln.io import storage
from kiln.model.identity import UNTRAINED, Precision, check_untrained, weights_digest

log = logging.getLogger(__name__)


def make_weights(
    checkpoint: str,
    output: str,
    *,
    sha256: str = "",
    precision: Precision = "float32",
    untrained: Mapping[str, Any] | None = None,
    scratch: Path,
) -> str:
    """Make the weights of a run; raise ConfigError, WeightsError, TransientError or StorageError if that fails.

    Args:
        checkpoint: https://, s3:// or path of the checkpoint; `untrained` for seeded random weights.
        output: Path or s3:// of the safetensors file. Without `sha256`, of a JSON file with the checkpoint's digest
            instead: vectors must be traceable to weights.
        sha256: Digest that the checkpoint must have, in hex.
        precision: Precision of the weights.
        untrained: The config's `model.untrained`.
        scratch: Folder for the download. An interrupted download is resumed.

    Returns:
        The digest of the weights in hex.
    """
    if checkpoint == UNTRAINED:
        with storage.atomic(output) as partial:
            digest = write_untrained(untrained or {}, precision, partial)
        log.warning("%s: UNTRAINED weights, for demonstrations; their vectors mean nothing", output)
        return digest
    path = fetch_checkpoint(checkpoint, scratch)
    if not sha256:
        digest = storage.sha256(path)
        record = {"checkpoint": checkpoint, "sha256": digest, "size": path.stat().st_size}
        storage.write_bytes(output, (json.dumps(record, indent=1) + "\n").encode())
        return digest
    sha256 = sha256.lower()
    verify_sha256(path, sha256)
    with storage.atomic(output) as partial:
        extract_encoder(path, sha256, checkpoint, precision, partial)
        size_mb = partial.stat().st_size / 1e6
    log.info("%s: encoder extracted, %.0f MB", output, size_mb)
    return sha256


def fetch_checkpoint(checkpoint: str, scratch: Path) -> Path:
    """Return a local path of the checkpoint.

    Args:
        checkpoint: https://, s3:// or path.
        scratch: Folder for the download. An interrupted download is resumed, a finished one is not repeated.

    Raises:
        ConfigError: If there is no such file.
        TransientError: If the download breaks off.
    """
    if not storage.is_remote(checkpoint):
        if not Path(checkpoint).is_file():
            raise ConfigError(f"model.checkpoint {checkpoint}: expected a file, got none. Correct the path.")
        return Path(checkpoint)
    path = scratch / Path(checkpoint.partition("?")[0]).name
    done = path.with_name(path.name + ".done")
    if done.exists() and path.exists() and done.read_text() == checkpoint:
        return path
    log.info("fetching %s", checkpoint)
    try:
        storage.fetch(checkpoint, path)
    except SourceError as e:
        raise ConfigError(f"model.checkpoint {e}") from e
    done.write_text(checkpoint)
    return path


def verify_sha256(path: Path, sha256: str) -> None:
    """Raise WeightsError unless the file has the digest `sha256`, in lower-case hex."""
    digest = storage.sha256(path)
    if digest != sha256:
        raise WeightsError(
            f"{path}: expected sha256 {sha256} (model.sha256), got {digest}. The file is damaged or another version: "
            "delete it to fetch it again, or correct model.sha256."
        )


def extract_encoder(path: Path, sha256: str, checkpoint: str, precision: Precision, output: Path) -> None:
    """Write the encoder of a verified checkpoint as safetensors.

    Args:
        path: Local path of the checkpoint.
        sha256: Its digest, for the metadata.
        checkpoint: Where it came from; its name goes into the metadata.
        precision: Precision of the weights.
        output: Local path of the safetensors file.

    Raises:
        WeightsError: If the checkpoint is not Clay's.
    """
    from kiln.model import weights  # imports torch

    encoder = weights.load_encoder(path, precision=precision)
    metadata = {"sha256": sha256, "checkpoint": Path(checkpoint).name, "precision": precision, "untrained": False}
    weights.save_encoder(encoder, output, metadata)


def write_untrained(settings: Mapping[str, Any], precision: Precision, output: Path) -> str:
    """Write an encoder of seeded random weights as safetensors.

    Args:
        settings: The config's `model.untrained`.
        precision: Precision of the weights.
        output: Local path of the safetensors file.

    Returns:
        The digest that identifies the weights.

    Raises:
        ConfigError: If the settings are impossible.
    """
    check_untrained(settings)
    from kiln.model import clay, weights  # imports torch

    dim, heads = settings["dim"], settings["heads"]
    geometry = clay.Geometry(
        dim=dim,
        depth=settings["depth"],
        heads=heads,
        dim_head=dim // heads,
        mlp=dim * settings["mlp_ratio"],
    )
    encoder = weights.in_precision(weights.untrained_encoder(geometry, settings["seed"]), precision)
    digest = weights_digest({"checkpoint": UNTRAINED, "untrained": settings})
    metadata = {"sha256": digest, "checkpoint": UNTRAINED, "precision": precision, "untrained": True}
    weights.save_encoder(encoder, output, metadata)
    return str(digest)
