"""What memory, threads, batch size and a compiler do for the encoder on a CPU: each way against Kiln's own.

    python -m tests.bench.settings [--rounds 3] [--blocks 4]

Each measurement is a process of its own, since allocators and threads are set when one starts, and both are timed in
turn. Blocks are of the published size, few of them: all are alike. What is worth it is Kiln's own already
(kiln/model/embedder.py: keep_memory), and the rest is here to be seen.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.bench.harness import publish

BATCH = 8


@dataclass(frozen=True)
class Way:
    """What differs from Kiln's: variables of the environment, the batch, a compiler, memory that malloc gives back."""

    name: str
    environment: dict[str, str] = field(default_factory=dict)
    batch: int = BATCH
    compiled: bool = False
    kept: bool = True


PLAIN = Way("Kiln")
WAYS = [
    Way("malloc as it is", kept=False),
    Way("huge pages", {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}),
    Way("threads pinned", {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}),
    Way("threads that spin", {"KMP_BLOCKTIME": "infinite", "GOMP_SPINCOUNT": "infinite", "OMP_WAIT_POLICY": "active"}),
    Way("threads that sleep", {"OMP_WAIT_POLICY": "passive"}),
    Way("batch 1", batch=1),
    Way("batch 4", batch=4),
    Way("batch 16", batch=16),
    Way("torch.compile", compiled=True),
]


def one(batch: int, compiled: bool, kept: bool, blocks: int) -> None:
    """Print seconds a chip and page faults a chip of this process' encoder, and a sum of its vectors, as JSON."""
    import resource

    import numpy as np
    import torch

    from kiln.archives.sensors import NAIP
    from kiln.model import clay, embedder, weights
    from tests.support.chips import make_chip

    encoder = weights.untrained_encoder(replace(clay.Geometry(), depth=blocks), 0)
    if compiled:
        encoder.transformer = torch.compile(encoder.transformer)
    pixels = np.random.default_rng(1).integers(1, 255, (16, 4, 256, 256)).astype(np.uint8)
    chips = [make_chip(n, pixels=pixels[n]) for n in range(batch)]
    if not kept:
        embedder.keep_memory = lambda: False
    embed = embedder.Embedder(encoder, NAIP, embedder.EmbedPolicy("zeros", NAIP.gsd), batch)
    embed(chips)
    faults, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
    made = embed(chips)["embeddings"]
    seconds = (time.perf_counter() - began) / batch
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    print(json.dumps({"seconds": seconds, "faults": faults / batch, "first": made[0].tolist()}))


def measured(way: Way, blocks: int) -> dict:
    """What `one` says in a process of its own."""
    told = [str(way.batch), str(int(way.compiled)), str(int(way.kept)), str(blocks)]
    environment = {**os.environ, **way.environment}
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.settings", "--one", *told],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    p = argparse.ArgumentParser(
        prog="python -m tests.bench.settings", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--blocks", type=int, default=4)
    p.add_argument("--only", nargs="+", metavar="WAY", help=f"of: {', '.join(w.name for w in WAYS)}")
    p.add_argument("--one", nargs=4, type=int, metavar=("BATCH", "COMPILED", "KEPT", "BLOCKS"), help=argparse.SUPPRESS)
    p.add_argument("--out", type=Path, default=Path("results/bench"))
    args = p.parse_args(argv)
    if args.one:
        one(args.one[0], bool(args.one[1]), bool(args.one[2]), args.one[3])
        return
    rows = []
    for way in (w for w in WAYS if not args.only or w.name in args.only):
        pairs = [(measured(PLAIN, args.blocks), measured(way, args.blocks)) for _ in range(args.rounds)]
        plain, other = pairs[0]
        apart = max(abs(a - b) for a, b in zip(plain["first"], other["first"], strict=True))
        assert apart < 1e-3, f"{way.name}: vectors are {apart:.1e} apart"
        rows.append(
            {
                "way": way.name,
                "times Kiln": statistics.median(a["seconds"] / b["seconds"] for a, b in pairs),
                "s a chip": statistics.median(b["seconds"] for _, b in pairs),
                "faults a chip": round(statistics.median(b["faults"] for _, b in pairs)),
                "Kiln": round(statistics.median(a["faults"] for a, _ in pairs)),
                "apart": apart,
            }
        )
        print(f"{way.name}: {rows[-1]['times Kiln']:.3f} times Kiln", flush=True)
    publish(
        "settings", rows, [f"{args.blocks} blocks, batch {BATCH} but where said; vectors are compared first"], args.out
    )


if __name__ == "__main__":
    main()
