"""The status of runs as one self-contained HTML page."""

import re
from html.parser import HTMLParser

import pytest

from kiln.report.status.command import RunCommand
from kiln.report.status.folders import Failure
from kiln.report.status.outputs import Output
from kiln.report.status.page import status_page
from kiln.report.status.redo import redo_commands
from tests.support.job_records import make_job_record
from tests.support.run_statuses import make_folder, make_partition, make_run

LOADING = {"src", "href", "srcset", "data", "action", "poster", "background"}  # attributes that make requests


class Page(HTMLParser):
    """A parsed page: its tags with attributes, the rows of its tables, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self.text, self._open = [], [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open.pop() != tag:
            pass

    def handle_data(self, data):
        self.text += data
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def page_of(*runs, refresh_s=None):
    return Page(status_page(runs, redo_commands(runs, list_file="redo.txt"), refresh_s))


def run_under_way(**options):
    failure = Failure("u1", "<script>alert(1)</script> & dark", "ftp://host/a.tif")
    folder = make_folder(
        make_partition("2020", 2),
        make_partition("2021", 4, missing=[0], failures={1: [failure]}, product=Output("waits")),
        notes=["2021: plan-<b>.jsonl was written last and is taken"],
    )
    records = [make_job_record(wall_s=3600.0) for _ in range(3)]
    command = RunCommand(config=["title=<i>"], price_per_hour=0.5)
    return make_run(folder, **({"database": Output("waits"), "command": command, "records": records} | options))


def test_progress_partitions_database_costs_failures_and_commands_are_there():
    page = page_of(run_under_way())
    assert [row[:4] for row in page.rows[:3]] == [
        ["worldcover-1a2b3c4d", "shards", "done", "missing"],
        ["2020", "2", "2", "0"],
        ["2021", "4", "3", "1"],
    ]
    assert [row[-1] for row in page.rows[:3]] == ["product", "merged", "waits"]
    assert page.rows[3][0] == "dataset"
    assert page.rows[4][:2] == ["worldcover-1a2b3c4d", "3"], "three jobs"
    assert page.rows[4][-1] == "1.50", "their price"
    assert ("progress", {"max": "6", "value": "5", "style": "width:100%"}) in page.tags
    assert "results/sample83%: 5 of 6 shards, 200 chips\n" in page.text
    assert "price 1.50, about 0.50 to come" in page.text
    assert "explorer database" in page.text
    assert "1 shard missing:\n  snakemake --config 'title=<i>' --cores all -- results/sample/" in page.text


def test_what_stands_in_files_is_escaped():
    text = status_page([run_under_way()], redo_commands([run_under_way()], list_file="redo.txt"))
    page = Page(text)
    assert "u1: <script>alert(1)</script> & dark" in page.text
    assert "plan-<b>.jsonl was written last" in page.text
    assert "script" not in {tag for tag, _ in page.tags}
    assert {"b", "i"}.isdisjoint(tag for tag, _ in page.tags)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; dark" in text


def test_names_of_runs_are_escaped():
    page = page_of(make_run(make_folder(root="/<u>", run="a<s>")))
    assert "/<u>/results/a<s>" in page.text
    assert {"u", "s"}.isdisjoint(tag for tag, _ in page.tags)


def test_the_page_loads_nothing():
    runs = [run_under_way(), make_run(make_folder(run="other"))]
    text = status_page(runs, redo_commands(runs, list_file="redo.txt"), 5)
    tags = Page(text).tags
    assert not [(tag, attributes) for tag, attributes in tags if LOADING & attributes.keys()]
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(tag for tag, _ in tags)
    assert not re.search(r"@import|url\(", text)


@pytest.mark.parametrize(("refresh_s", "content"), [(None, []), (10, ["10"]), (2.6, ["3"]), (0.2, ["1"])])
def test_a_page_is_loaded_again_only_where_it_is_written_again(refresh_s, content):
    page = page_of(make_run(), refresh_s=refresh_s)
    refreshes = [attributes for tag, attributes in page.tags if tag == "meta" and "http-equiv" in attributes]
    assert [(found["http-equiv"], found["content"]) for found in refreshes] == [("refresh", c) for c in content]


def test_a_finished_run_without_jobs_has_no_costs_and_no_failures():
    page = page_of(make_run())
    assert len(page.rows) == 2, "the partitions alone"
    assert "Failures" not in page.text
    assert "Nothing to do: all 3 shards are done, none with failures; products and database are there." in page.text


def test_several_runs_are_on_one_page():
    page = page_of(make_run(), make_run(make_folder(run="other", name="naip-99aa99aa"), database=Output("missing")))
    assert [row[0] for row in page.rows] == ["worldcover-1a2b3c4d", "2021", "naip-99aa99aa", "2021"]
    assert "Status of sample, other" in page.text
    assert "results/other, carry the results on (products, index):\n  snakemake --cores all" in page.text
