"""The pages of the archives quote the reasons for which scenes are refused: with the words of the code."""

import re

import pytest

from tests import ROOT

ARCHIVES = ("naip", "sentinel2", "worldcover")
SHARED = ("raster_reading.py", "failed_read.py", "utm_grid.py")


def code_of(archive):
    """Return the sources that read an archive's files, with texts of several lines joined."""
    files = [*(ROOT / "kiln/archives" / archive).glob("*.py"), *(ROOT / "kiln/archives" / name for name in SHARED)]
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(file.read_text() for file in sorted(files)))


@pytest.mark.parametrize("archive", ARCHIVES)
def test_the_reasons_on_the_page_are_those_of_the_code(archive):
    page, code = (ROOT / "docs/archives" / f"{archive}.md").read_text(), code_of(archive)
    section = page.partition("## What is refused\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| .* \| (`.*`) \|$", section, re.MULTILINE)
    reasons = [reason for row in rows for reason in re.findall(r"`([^`]+)`", row)]
    assert len(reasons) >= 10
    assert [reason for reason in reasons if not all(part in code for part in reason.split("..."))] == []
