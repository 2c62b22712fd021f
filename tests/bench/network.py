"""Runs through a hostile network: each ends as an undisturbed one, or with an error and nothing lost.

    python -m tests.bench.network [--seeds 200] [--first 0] [--rate 0.15] [--dataset naip]

Each dataset's archive is embedded once for each seed, over http, https and S3 in turn. The seed decides which requests
are reset, cut, stalled or refused. The table counts the endings; a run that ended wrong is printed with its seed.
"""

import argparse
import collections
import sys
import tempfile
from pathlib import Path

from kiln.io.text_table import aligned
from tests.bench.workload import MAKERS
from tests.network.runs import Ending, HostileRuns


def main() -> None:
    """Run all seeds of all datasets; exit with 1 if a run ended wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200, metavar="N", help="runs of each dataset")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first seed")
    parser.add_argument("--rate", type=float, default=0.15, metavar="FRACTION", help="of requests that fail")
    parser.add_argument("--dataset", action="append", choices=MAKERS, help="one dataset; can be repeated")
    args = parser.parse_args()
    rows, wrong = [], 0
    faults: collections.Counter[str] = collections.Counter()
    for dataset in args.dataset or MAKERS:
        endings: collections.Counter[Ending] = collections.Counter()
        with tempfile.TemporaryDirectory(prefix="kiln-network-") as folder, HostileRuns(dataset, Path(folder)) as runs:
            for seed in range(args.first, args.first + args.seeds):
                outcome = runs.run(seed, args.rate)
                endings[outcome.ending] += 1
                faults.update(outcome.faults)
                if outcome.ending is not Ending.SAME:
                    print(f"{dataset} seed {seed}: {outcome.ending}: {outcome.message}", flush=True)
        rows.append([dataset, *(str(endings[ending]) for ending in Ending)])
        wrong += endings[Ending.WRONG]
    print("\n".join(aligned([["dataset", *Ending], *rows])))
    print("faults: " + ", ".join(f"{count} {fault}" for fault, count in faults.most_common()))
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
