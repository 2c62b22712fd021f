"""The tables of columns in the documents are up to date."""

from kiln.product.description.column_docs import DOCUMENT, generate
from tests import ROOT


def test_the_tables_of_columns_are_up_to_date():
    assert (ROOT / DOCUMENT).read_text() == generate(ROOT), "run python -m kiln.product.description.column_docs"
