"""Read 635 damaged inputs and print what happened: `python -m tests.fuzz [--kinds NAME ...] [--seeds N ...]`."""

import argparse
import logging
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

from kiln.io.text_table import aligned
from tests.fuzz.kinds import KINDS
from tests.fuzz.runner import BAD, GOOD, run_kinds


def main(argv: list[str] | None = None) -> int:
    """Return 1 if an input gave a traceback, a hang, a dead process or another result without a word."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="*", choices=[k.name for k in KINDS], metavar="KIND", help="default: all")
    parser.add_argument("--seeds", nargs="*", type=int, help="default: as many as the kind has")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default: %(default)s)")
    args = parser.parse_args(argv)
    logging.disable()
    warnings.filterwarnings("ignore", "lancedb fork support", RuntimeWarning)  # children open their own
    failures = []
    rows = []
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            if args.kinds and kind.name not in args.kinds:
                continue
            outcomes = run_kinds([kind], Path(folder), args.jobs, lambda k: args.seeds or range(k.count))
            counts = Counter(o.verdict for o in outcomes)
            total += counts
            rows.append([kind.name, str(len(outcomes)), *(str(counts[v] or "") for v in (*GOOD, *BAD))])
            failures += sorted((o for o in outcomes if o.verdict in BAD), key=lambda o: o.seed)
            print(f"{kind.name}: {dict(counts)}", file=sys.stderr, flush=True)
    rows.append(["all", str(sum(total.values())), *(str(total[v] or "") for v in (*GOOD, *BAD))])
    print("\n".join(aligned([["kind", "inputs", *GOOD, *BAD], *rows], rule=True)))
    for outcome in failures:
        print(f"\n--kinds '{outcome.kind}' --seeds {outcome.seed}: {outcome.verdict}\n{outcome.text}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
