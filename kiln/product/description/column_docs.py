"""The tables of columns in docs/product.md, generated from the dictionary of columns.

python -m kiln.product.description.column_docs
"""

from pathlib import Path

from kiln.archives.registry import BUILT_IN, archives
from kiln.formats import columns, patch_file, vectors
from kiln.formats.columns import ColumnSpec, markdown_table

DOCUMENT = Path("docs") / "product.md"
START, END = "<!-- generated: {} -->\n", "<!-- end of generated part -->\n"
VECTOR_MEANINGS = {  # condition and meaning by column, for files of every kind
    "embeddings": ("", "vector of the chip: the class token, with `embedding: mean` the mean of the patch tokens"),
    "scale": ("with int8", "factor of the integers in `embeddings`"),
    "embeddings_mean": ("with `embedding: both`", "mean of the patch tokens"),
    "scale_mean": ("with int8 and `embedding: both`", "factor of the integers in `embeddings_mean`"),
}


def generate(root: Path) -> str:
    """Return the text of docs/product.md below the project's root, with every table up to date."""
    text = (root / DOCUMENT).read_text()
    for name, table in tables().items():
        before, rest = text.split(START.format(name))
        after = rest.split(END, 1)[1]
        text = f"{before}{START.format(name)}{table}{END}{after}"
    return text


def tables() -> dict[str, str]:
    """Return the tables by name."""
    common = [columns.CHIP, *_vectors(), columns.GEOMETRY, columns.BOX, *columns.PLACE, columns.STAC_ITEM]
    *others, last = vectors.VECTOR_DTYPES
    types = dict.fromkeys(vectors.SCALES, f"fixed-size list of {', '.join(others)} or {last}, length D")
    own = {
        f"columns of {archive.name}": markdown_table(archive.load("columns", "COLUMNS"))
        for archive in archives().values()
        if archive.module in BUILT_IN
    }
    patches = {patch_file.COLUMN: "list of float16, all vectors of the chip"}
    return {
        "columns": markdown_table(common, types),
        **own,
        "columns of patches": markdown_table(patch_file.columns(1), patches),
        "columns of ledgers": markdown_table(columns.LEDGER),
    }


def _vectors() -> list[ColumnSpec]:
    """Return the columns of vectors of files of every kind."""
    every = {column.name: column.dtype for column in vectors.fields(1, "int8", "both")}
    return [
        ColumnSpec(name, every[name], meaning, condition=condition)
        for name, (condition, meaning) in VECTOR_MEANINGS.items()
    ]


if __name__ == "__main__":
    DOCUMENT.write_text(generate(Path()))
    print(DOCUMENT)
