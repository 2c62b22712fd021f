"""Compare the vectors of the same chips in two embeddings files: what a precision, dtype or setting costs.

    kiln compare results/a/.../shards/2021/c00512.parquet results/b/.../shards/2021/c00512.parquet

Chips are matched by their ids. Two cosines are shown: that of a chip's two vectors, and the same after the first file's
mean vector was subtracted from both, which shows what separates chips. Recall@10 is the fraction of a chip's ten
nearest by cosine in the first file that are its ten nearest in the second.
"""

import numpy as np

from kiln.cli import command_line
from kiln.formats import vectors
from kiln.io.text_table import aligned
from kiln.product.compare import Comparison, compare_vectors, read_vectors, setting_differences

PERCENTILES = {"min": 0, "1 % are below": 1, "median": 50}  # of the cosines, by heading


def comparison_text(comparison: Comparison) -> str:
    """Return the table of a comparison."""
    rows = [["", *PERCENTILES]]
    for name, values in (("cosine", comparison.cosines), ("cosine about the mean", comparison.centred_cosines)):
        rows.append([name, *(f"{value:.6f}" for value in np.percentile(values, list(PERCENTILES.values())))])
    chips = f"{comparison.common:,} chips in both files"
    if any(comparison.only):
        chips += f", {comparison.only[0]:,} in the first alone, {comparison.only[1]:,} in the second alone"
    return "\n".join([chips, "", *aligned(rows), "", f"recall@{comparison.neighbours} {comparison.recall:.4f}"])


def main(argv: list[str] | None = None) -> None:
    """Print the differences of two files."""
    parser = command_line.parser(__doc__, "kiln compare")
    parser.add_argument("first", help="embeddings file: path or s3://")
    parser.add_argument("second", help="the other one")
    parser.add_argument("--column", choices=tuple(vectors.SCALES), default="embeddings", help="the vectors to compare")
    args = parser.parse_args(argv)

    def work() -> None:
        first, second = (read_vectors(uri, args.column) for uri in (args.first, args.second))
        print("\n".join(setting_differences(first.metadata, second.metadata) or ["the same settings"]))
        print(comparison_text(compare_vectors(first, second)))

    command_line.run(work)


if __name__ == "__main__":
    main()
