"""The embedding pipeline of every archive.

    reads (threads, bounded bytes) -> chips (one thread) -> batches (short queue) -> encoder -> rows and ledger

Reads, cuts and encoding overlap, so the encoder waits only if reading is slower than encoding. Memory depends on the
budget and not on the size of the shard.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from kiln.engine.accounting import ShardAccounting
from kiln.engine.batches import Batch, make_batches
from kiln.engine.checkpoints import Checkpoints
from kiln.engine.read_ahead import read_ahead
from kiln.engine.statistics import ShardStatistics
from kiln.formats import embeddings_file, patch_file, vectors
from kiln.formats.records import Chip, Dropped, Opened, Source
from kiln.io.in_thread import in_thread
from kiln.model.clay import ClayEncoder
from kiln.model.embedder import Embedder, EmbedPolicy

MAX_WAITING_BATCHES = 2  # ready while one is encoded


@dataclass(frozen=True)
class Budget:
    """The memory and threads of a job. Vectors do not depend on it, beyond the last bits of float arithmetic.

    Attributes:
        batch_size: Chips encoded together.
        read_threads: Reads done at the same time.
        read_ahead_bytes: Bytes that are read, or being read, and not yet cut into chips.
    """

    batch_size: int = 8
    read_threads: int = 4
    read_ahead_bytes: int = 512 << 20


@dataclass(frozen=True)
class EmbeddedShard:
    """Result of `embed`.

    Attributes:
        rows: Number of rows of the file.
        ledger: The ledger, a row for each unit.
        statistics: What it took.
    """

    rows: int
    ledger: pa.Table
    statistics: ShardStatistics


def embed(
    source: Source,
    load_encoder: Callable[[], ClayEncoder],
    dim: int,
    path: Path,
    metadata: Mapping[str, Any],
    *,
    policy: EmbedPolicy,
    budget: Budget,
    max_failed_fraction: float,
    checkpoints: Checkpoints | None = None,
    patch_path: Path | None = None,
) -> EmbeddedShard:
    """Embed a source's chips and write them to an embeddings file. The caller puts the file and its ledger in place.

    Units with a checkpoint are neither read nor encoded. The files are the same bytes with and without checkpoints.

    Args:
        source: The shard's chips; `source.check` is done.
        load_encoder: Returns the encoder. It is called when the first chip is there, while reading goes on; a shard
            without a chip loads no weights.
        dim: Dimensions of a vector.
        path: The embeddings file to write.
        metadata: The `kiln` metadata of the file; `sources` is added.
        policy: What the encoder is given besides pixels, and which of its tokens are stored.
        budget: Memory and threads.
        max_failed_fraction: Largest fraction of failed units, 0 to 1. Partly failed units count by their fraction.
        checkpoints: Checkpoints of this and earlier tries.
        patch_path: The file of patch vectors to write, in the order of the rows, if `policy` keeps them.

    Returns:
        The number of rows, the ledger of the shard, and what it took.

    Raises:
        TooManyFailuresError: If more failed; the log has the ledger.
        TransientError: If a retry may succeed.
        StorageError: If a file cannot be written.
    """
    full_metadata = {**metadata, "sources": source.provenance()}
    schema = embeddings_file.schema(dim, policy.vector_dtype, source.columns, full_metadata, policy.embedding)
    with ExitStack() as stack:
        if checkpoints:
            stack.enter_context(checkpoints)
        patch_writer = None
        if patch_path:
            patch_writer = stack.enter_context(patch_file.PatchWriter(patch_path, patch_file.schema(full_metadata)))
        writer = stack.enter_context(embeddings_file.ShardWriter(path, schema))
        accounting = ShardAccounting(source.units(), writer, checkpoints, patch_writer)
        statistics = ShardStatistics(path.name.lstrip(".").split(".")[0], accounting.ledger, accounting.checkpointed)

        def load_embedder() -> Embedder:
            return Embedder(load_encoder(), source.info.sensor, policy, budget.batch_size)

        events = _read_chips(source, accounting.checkpointed, budget, statistics)
        batches = in_thread(make_batches(events, budget.batch_size, one_gsd=policy.gsd is None), MAX_WAITING_BATCHES)
        with closing(batches):
            for batch, columns in _encode(batches, load_embedder, policy.vector_dtype, statistics):
                _record(batch, columns, accounting, statistics)
        ledger = accounting.close()
    result = EmbeddedShard(writer.rows, ledger.table(), statistics)
    assert result.rows == ledger.embedded
    statistics.log_summary(result.rows)
    ledger.raise_for_failures(max_failed_fraction)
    return result


def _read_chips(
    source: Source, checkpointed: frozenset[str], budget: Budget, statistics: ShardStatistics
) -> Generator[Chip | Dropped | Opened, None, None]:
    """Yield the chips and reports of all units that have no checkpoint."""
    reads = (read for read in source.reads() if read.unit_id not in checkpointed)
    with closing(read_ahead(reads, budget.read_threads, budget.read_ahead_bytes, statistics.measure_read)) as loaded:
        yield from source.chips(statistics.count_reads(loaded))


def _encode(
    batches: Iterator[Batch],
    load_embedder: Callable[[], Embedder],
    vector_dtype: vectors.VectorDtype,
    statistics: ShardStatistics,
) -> Iterator[tuple[Batch, vectors.Columns | None]]:
    """Yield the batches in order, each with its vectors as they are stored; None for a batch without chips.

    The embedder is loaded for the first chip. A GPU encodes the next batches while a batch is yielded.
    """
    embedder: Embedder | None = None
    in_flight: deque[tuple[Batch, Callable[[], vectors.Columns] | None]] = deque()

    def finish_first() -> tuple[Batch, vectors.Columns | None]:
        batch, collect = in_flight.popleft()
        if collect is None:
            return batch, None
        with statistics.encoding():
            return batch, vectors.store(collect(), vector_dtype)

    while True:
        with statistics.waiting() if embedder else nullcontext():
            batch = next(batches, None)
        if batch is None:
            break
        collect = None
        if batch.chips:
            embedder = embedder or load_embedder()
            statistics.chip_px = batch.chips[0].pixels.shape[-1]
            with statistics.encoding():
                collect = embedder.start(batch.chips)
        in_flight.append((batch, collect))
        while len(in_flight) > (embedder.ahead if embedder else 0):
            yield finish_first()
    while in_flight:
        yield finish_first()


def _record(
    batch: Batch, columns: vectors.Columns | None, accounting: ShardAccounting, statistics: ShardStatistics
) -> None:
    """Account for the reports and the encoded chips of a batch."""
    progress = statistics.progress
    for event in batch.reports:
        if isinstance(event, Opened):
            progress.grow(accounting.record_opened(event))
        else:
            accounting.record_skipped(event)
            progress.advance(event.count)
    if columns is not None:
        progress.advance(len(batch.chips), embedded=accounting.record_embedded(batch.chips, columns))
    accounting.flush_if_finished()
