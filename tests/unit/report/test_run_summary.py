"""The summary that a run prints at its end."""

import json

import pytest

from kiln.archives.worldcover.lattice import Column
from kiln.product.record import ProductRecord
from kiln.report.run_summary import IndexSummary, summary_text
from scripts import summary as summary_script
from tests.support.products import make_product, shard_metadata

GRID = [Column(k, 0, 10) for k in range(10)]
EXACT = {"search": "exact", "rows": 1234, "recall_at_10": 1.0}


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    run = tmp_path_factory.mktemp("summary")
    return (
        make_product(run, 2020, columns=[Column(k, 0, 200) for k in range(10)], kiln=shard_metadata(untrained=True)),
        make_product(run, 2021, columns=GRID, fail=lambda c: "no" if c == 1 else "", skip=lambda c, r: r == 0),
    )


def text_of(products, index=EXACT, pictures=(), **changes):
    records = [ProductRecord.from_json(m.record | changes) for m in products]
    summary = IndexSummary("results/x/explorer", **index)
    return summary_text(records, [m.uri for m in products], summary, pictures).splitlines()


def test_the_table_has_the_counts_of_every_product(products):
    head, rule, one, two, *_ = text_of(products)
    assert head.split() == [
        "product",
        "expected",
        "embedded",
        "skipped",
        "nodata",
        "skipped",
        "cloud",
        "deduplicated",
        "failed",
        "units",
    ]
    assert set(rule) == {"-", " "}
    assert one.split() == ["worldcover", "2020", "2,000", "2,000", "0", "0", "0", "0", "10", "embedded"]
    assert two.split() == ["worldcover", "2021", "100", "81", "9", "0", "0", "10", "9", "embedded,", "1", "failed"]


def test_numbers_are_right_aligned(products):
    head, _, one, two, *_ = text_of(products)
    for name in ("expected", "embedded", "failed"):
        end = head.index(name) + len(name)
        assert one[end - 1].isdigit()
        assert two[end - 1].isdigit()
        assert one[end] == two[end] == " "


def test_untrained_weights_and_missing_shards_are_reported_only_where_present(products):
    assert any("UNTRAINED" in x for x in text_of(products))
    assert not any("UNTRAINED" in x for x in text_of(products[1:]))
    assert not any("missing" in x for x in text_of(products))
    assert any(x.startswith("4 shards are missing") for x in text_of(products, missing_shards=["a", "b"]))


def test_the_paths_of_products_database_and_pictures_are_listed(products):
    lines = text_of(products, pictures=["a/similar.png", "a/coverage.png"])
    for m in products:
        assert f"product   {m.uri}/" in lines
    assert "explorer  results/x/explorer  (1,234 chips, exact search)" in lines
    assert lines[-2:] == ["picture   a/similar.png", "picture   a/coverage.png"]


def test_the_recall_of_an_index_is_reported(products):
    lines = text_of(products, {"search": "IVF_SQ", "rows": 6000, "recall_at_10": 0.98765})
    assert "explorer  results/x/explorer  (6,000 chips, IVF_SQ, recall@10 0.988)" in lines


def test_the_main_prints_the_summary(products, tmp_path, capsys):
    (tmp_path / "index.json").write_text(json.dumps(EXACT))
    records = [m.record_file for m in products]
    summary_script.main(["--records", *records, "--index", str(tmp_path / "index.json"), "--db", "results/x/explorer"])
    assert capsys.readouterr().out.strip().splitlines() == text_of(products)


def test_a_missing_record_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as e:
        summary_script.main(["--records", str(tmp_path / "gone.json"), "--index", "x", "--db", "y"])
    assert e.value.code == 1
    assert "gone.json: does not exist" in capsys.readouterr().err
