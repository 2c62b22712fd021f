"""One embedding job: a shard's chips in, its embeddings file and ledger out, both put in place at once."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kiln.engine.metadata import given_gsd, shard_fingerprint, shard_metadata
from kiln.engine.options import EmbedOptions
from kiln.errors import ConfigError, KilnError
from kiln.formats.job_record import JobRecord, write_job_record
from kiln.formats.ledger import ledger_name, write_ledger
from kiln.formats.records import Source, Unit
from kiln.io import storage
from kiln.model.device import claim_device

if TYPE_CHECKING:  # torch is slow to import, and command lines import this module
    from kiln.engine.checkpoints import Checkpoints
    from kiln.model.clay import ClayEncoder
    from kiln.model.identity import Precision

__all__ = ["EmbedOptions", "ShardResult", "embed_shard"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardResult:
    """Result of an embedding job.

    Attributes:
        output: Path or s3:// of the embeddings file.
        ledger: Path or s3:// of its ledger.
        patches: Path or s3:// of the file of patch vectors; None if there is none.
        rows: Chips embedded.
        units: Units of the shard.
        fingerprint: Digest of everything that changes a vector, in hex.
        job: What the job took.
    """

    output: str
    ledger: str
    patches: str | None
    rows: int
    units: int
    fingerprint: str
    job: JobRecord


def embed_shard(
    source: Source,
    *,
    weights: Path | str,
    output: str,
    ledger: str | None = None,
    options: EmbedOptions | None = None,
    checkpoints: str | None = None,
    job_record: str | None = None,
    expect_fingerprint: str | None = None,
) -> ShardResult:
    """Embed one shard, and put its embeddings file and its ledger in place.

    The ledger is put in place before the embeddings file, so a shard whose file exists is complete. Settings that
    would fail again fail before the weights are loaded. The result is the same bytes with and without checkpoints.

    Args:
        source: The shard's chips.
        weights: Safetensors file of the encoder, as the rule `encoder_weights` writes it.
        output: Path or s3:// of the embeddings file (GeoParquet, a row for each chip).
        ledger: Path or s3:// of the ledger (Parquet, a row for each unit). Patch vectors go into the same folder.
            None: the folder of `output`.
        options: The job's options; None: the defaults.
        checkpoints: Path or s3:// of a folder for finished units, from which a retry resumes. They are deleted when
            the shard is complete. None: no checkpoints.
        job_record: Path or s3:// of a small JSON file to write: seconds, bytes, requests and energy of the job.
        expect_fingerprint: Beginning of the fingerprint that the vectors must have.

    Returns:
        The files, their numbers of rows and units, the fingerprint, and what the job took.

    Raises:
        ConfigError: If the source, weights and options do not have the expected fingerprint, or there is no such GPU.
        WeightsError: If the weights are not readable.
        SourceError: If no unit can be read, for a reason that a retry does not change.
        TransientError: If the archive or the store may work on a retry.
        StorageError: If a file cannot be written.
        TooManyFailuresError: If more units failed than `max_failed_fraction` allows.
    """
    from kiln.engine import pipeline
    from kiln.engine.checkpoints import Checkpoints
    from kiln.engine.job_meter import JobMeter
    from kiln.formats import patch_file
    from kiln.model import embedder, int8
    from kiln.model import weights as encoders

    weights, options = Path(weights), options or EmbedOptions()
    ledger = ledger or ledger_name(output)
    patches = patch_file.patches_name(ledger.removesuffix(".ledger.parquet")) if options.patches else None
    info, header = source.info, encoders.read_metadata(weights)
    fingerprint = shard_fingerprint(info, header, options)
    if expect_fingerprint and not fingerprint.startswith(expect_fingerprint):
        raise ConfigError(
            f"{output}: expected fingerprint {expect_fingerprint}, got {fingerprint[:8]}. Correct the options, the "
            "weights or the folder: they do not belong together."
        )
    metadata = shard_metadata(info, header, fingerprint, options)
    finished_units = None
    if checkpoints:
        device_type = options.device.partition(":")[0]
        finished_units = Checkpoints.for_metadata(checkpoints, metadata | {"device": device_type})
    with (
        claim_device(options.device) as device,
        storage.atomic(output) as partial_output,
        storage.atomic(patches) if patches else nullcontext() as partial_patches,
    ):
        if header["precision"] == "int8":
            int8.require_int8(device)
        meter = JobMeter(device)
        source.check()
        shard = pipeline.embed(
            source,
            lambda: _load_encoder(weights, header["precision"], device, options.threads),
            header["geometry"]["dim"],
            partial_output,
            metadata,
            policy=embedder.EmbedPolicy(
                "zeros" if info.metadata == "zeros" else "as_trained",
                given_gsd(info),
                options.vector_dtype,
                options.embedding,
                options.patches,
            ),
            budget=pipeline.Budget(options.batch_size, options.read_threads, options.read_ahead_mb << 20),
            max_failed_fraction=options.max_failed_fraction,
            checkpoints=finished_units,
            patch_path=partial_patches,
        )
        with storage.atomic(ledger) as partial_ledger:
            write_ledger(partial_ledger, shard.ledger)
        name = Path(output).stem
        job = meter.record(info, name, options, header["precision"], shard.statistics, shard.rows)
        if job_record:
            _write_job_record(job_record, job)
    if finished_units:
        _delete_checkpoints(finished_units, source.units())
    log.info("%s: %d rows of %d units", output, shard.rows, len(shard.ledger))
    return ShardResult(output, ledger, patches, shard.rows, len(shard.ledger), fingerprint, job)


def _load_encoder(weights: Path, precision: "Precision", device: str, threads: int) -> "ClayEncoder":
    """Return the encoder of a weights file; `threads` CPU threads encode, 0: one for each core."""
    import torch

    from kiln.model import weights as encoders

    if threads:
        torch.set_num_threads(threads)
    return encoders.load_encoder(weights, precision=precision, device=device)


def _write_job_record(uri: str, job: JobRecord) -> None:
    """Write the record of a job. A failure is a warning: a failed job would lose the shard."""
    try:
        write_job_record(uri, job)
    except KilnError as e:
        log.warning("the record of the job is not written: %s", e)


def _delete_checkpoints(checkpoints: "Checkpoints", units: list[Unit]) -> None:
    """Delete the checkpoints of a complete shard. A failure is a warning: a failed job would lose the shard."""
    try:
        checkpoints.delete(units)
    except KilnError as e:
        log.warning("checkpoints of a complete shard remain: %s", e)
