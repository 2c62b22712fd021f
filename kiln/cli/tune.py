"""Measure this machine, and recommend the precision and batch size that make the encoder fastest on it.

    kiln tune                       # minutes on a CPU; on a GPU: --device cuda
    kiln tune --batches 1,2,4 --threads 1

The rates are also written to tuning/, into the file of this kind of machine. `snakemake plan` in the same folder takes
its hours and prices from there, if the run's jobs run on this machine.

The encoder has its published size and random weights: speed does not depend on their values. The table also has the
rate of the encoder's matrix products alone, which no encoder can exceed. The precision is part of the fingerprint:
choose it once for a run, for all machines that work on it. int8, for CPUs, is measured and never recommended, since it
rounds. To see what that costs, embed a shard both ways and run `kiln compare`.
"""

import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, cast

from kiln.cli import command_line
from kiln.errors import ConfigError
from kiln.io.text_table import aligned, format_rate
from kiln.model.identity import PRECISIONS, Precision
from kiln.model.tuning_file import EncoderSetting, tuning_file, write_rates

if TYPE_CHECKING:  # both import torch, which `kiln tune --help` need not wait for
    from kiln.model.identity import Precision
    from kiln.model.tuning import Speed

CPU_BATCHES, GPU_BATCHES = "1,4,8,16", "16,32,64,128,256"


def report(speeds: "Sequence[Speed]", device: str, threads: int) -> str:
    """Return the table, and the lines for the config."""
    from kiln.model.tuning import ROUNDING, best

    rows = [["precision", "batch", "chips/s", "Gflop/s", "matrices alone", "fraction"]]
    for s in speeds:
        rates = [
            format_rate(s.chips_per_second),
            f"{s.gflops:,.0f}",
            f"{s.matrix_gflops:,.0f}",
            f"{s.matrix_fraction:.0%}",
        ]
        rows.append([s.precision, str(s.batch), *rates])
    choice = best(speeds)
    text = [
        *aligned(rows, left=[0]),
        "",
        "For the config:",
        "",
        "model:",
        f"  precision: {choice.precision} # part of the fingerprint",
        "resources:",
        f"  batch_size: {choice.batch}",
        f"  embed_threads: {threads}",
        f"  device: {device}",
        "plan:",
        f"  chips_per_second: {choice.chips_per_second:.3g} # only if the run is planned on another machine",
    ]
    rounded = [s for s in speeds if s.precision == ROUNDING]
    if rounded and choice not in rounded:
        gain = best(rounded).chips_per_second / choice.chips_per_second
        if gain > 1:
            text += [
                "",
                f"int8 is {gain:.2f} times as fast, and rounds. To see what that costs, embed a shard both ways:",
                "kiln compare FLOAT32.parquet INT8.parquet",
            ]
    return "\n".join(text)


def parse_batches(text: str) -> list[int]:
    """Return the batch sizes of `4,8`. Raise ConfigError for another form."""
    words = text.split(",")
    if not all(word.isdigit() and int(word) for word in words):
        raise ConfigError(f"--batches: expected whole numbers above 0, as 4,8, got {text}. Correct it.")
    return [int(word) for word in words]


def parse_precisions(text: str) -> list[Precision]:
    """Return the precisions of `float32,bfloat16`. Raise ConfigError for another one."""
    precisions = text.split(",")
    if unknown := sorted(set(precisions) - set(PRECISIONS)):
        raise ConfigError(f"--precisions: expected {' or '.join(PRECISIONS)}, got {', '.join(unknown)}. Correct it.")
    return cast("list[Precision]", precisions)


def main(argv: list[str] | None = None) -> None:
    """Measure and recommend."""
    p = command_line.parser(__doc__, "kiln tune")
    p.add_argument("--device", default="cpu", help="cpu, or cuda")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of one job's encoder")
    p.add_argument(
        "--batches", metavar="N,N", help=f"batch sizes (default: {CPU_BATCHES} on a CPU, {GPU_BATCHES} on a GPU)"
    )
    p.add_argument("--precisions", metavar="P,P", help="(default: all; a GPU has no int8)")
    p.add_argument("--chip-size", type=int, default=256, help="side of a chip in pixels")
    p.add_argument("--untrained", type=json.loads, metavar="JSON", help="sizes of another encoder, as model.untrained")
    p.add_argument("--json", action="store_true", help="print the figures alone, as JSON")
    args = p.parse_args(argv)

    def work() -> None:
        on_cpu = args.device == "cpu"
        batches = parse_batches(args.batches or (CPU_BATCHES if on_cpu else GPU_BATCHES))
        precisions = parse_precisions(args.precisions or ",".join(p for p in PRECISIONS if on_cpu or p != "int8"))
        if args.chip_size < 8 or args.chip_size % 8:
            raise ConfigError(f"--chip-size: expected a multiple of 8, got {args.chip_size}. Correct it.")

        import torch

        from kiln.model.clay import Geometry
        from kiln.model.tuning import best, measure

        if not on_cpu and not torch.cuda.is_available():
            raise ConfigError(f"--device: expected a GPU that torch sees, got {args.device} and none. Use cpu.")
        torch.set_num_threads(args.threads)
        use = {"device": args.device, "threads": args.threads, "chip_px": args.chip_size}
        speeds, rates = [], {}
        for precision, batch in itertools.product(precisions, batches):
            setting = EncoderSetting.of(args.untrained, precision=precision, batch=batch, **use)
            geometry = replace(Geometry(), **setting.sizes)
            speeds.append(measure(geometry, batch, precision, args.device, args.chip_size))
            rates[setting] = speeds[-1].chips_per_second
        path = tuning_file(args.device)
        write_rates(path, rates)
        if args.json:
            figures = [asdict(s) | {"matrix_fraction": round(s.matrix_fraction, 3)} for s in speeds]
            print(json.dumps({"speeds": figures, "best": asdict(best(speeds))}))
        else:
            print(report(speeds, args.device, args.threads))
            print(f"\nwritten for `snakemake plan` in this folder: {path}")

    command_line.run(work)


if __name__ == "__main__":
    main()
