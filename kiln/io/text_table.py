"""Tables for terminals and logs."""

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,), rule: bool = False) -> list[str]:
    """Return rows of cells as lines with aligned columns, two spaces apart.

    Args:
        rows: Rows of equally many cells.
        left: Columns that are aligned to the left; the others are aligned to the right.
        rule: Whether a line is drawn below the first row.

    Returns:
        The lines, without spaces at their ends.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]] if rule else lines
