"""Keys and manifests of NAIP, plans of them, and refusals."""

import io
import zipfile

import pytest

from kiln.archives.naip.chip_counts import ChipCounts
from kiln.archives.naip.plan import SceneFilter, read_scenes
from kiln.errors import ConfigError
from tests.support import plans

QUARTERS = ("ne", "nw", "se", "sw")  # in alphabetical order
STEM = "nd/2018/60cm/rgbir_cog/48097/m_4809732_nw_14_060_20180901"


def scene_key(n, state="nd", year=2014, cm=100):
    """Return the n-th key of a state and year; 256 scenes fill a degree."""
    degree, rest = divmod(n, 256)
    lat, lon, quad = 46 - degree // 10, 100 + degree % 10, f"{rest // 4 + 1:02d}"
    res = {100: "1", 60: "060"}[cm]
    block = f"{lat}{lon}"
    return f"{state}/{year}/{cm}cm/rgbir_cog/{block}/m_{block}{quad}_{QUARTERS[rest % 4]}_14_{res}_{year}0720.tif"


def scene_keys(count, **options):
    return [scene_key(n, **options) for n in range(count)]


MIXED = [
    scene_key(n, state, year, cm)
    for state, year, cm in (("nd", 2014, 100), ("nd", 2018, 60), ("sd", 2014, 100), ("sd", 2016, 60))
    for n in range(40)
]


def manifest_text(lines):
    return "".join(f"{line}\n" for line in lines).encode()


def zipped(data, name="manifest.txt"):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr(name, data)
    return out.getvalue()


def write_file(tmp_path, data, name="manifest.txt"):
    path = tmp_path / name
    path.write_bytes(data)
    return str(path)


def plan_bytes(manifest, output, **settings):
    """Plan the scenes of a manifest and return the bytes of the plan."""
    return plans.write("naip", output, manifest=str(manifest), **settings)


def shard_names(shards):
    return {(s.partition, s.name) for s in shards}


def refusal(manifest, tmp_path, error=ConfigError, **settings):
    """Return the message of an error that leaves no plan."""
    with pytest.raises(error) as e:
        plan_bytes(manifest, tmp_path / "out" / "plan.gz", **settings)
    assert not list(tmp_path.glob("out/*"))
    return str(e.value)


def check_counts(counts):
    assert counts.lines == counts.scenes + sum(counts.others.values()) + len(counts.unreadable)
    assert counts.scenes == counts.selected + counts.filtered + counts.superseded + counts.duplicates
    return counts


def selected_keys(lines, keep=None):
    """Return the selected keys in alphabetical order, and the counts, which add up."""
    partitions, counts = read_scenes(lines, keep or SceneFilter(), ChipCounts(256))
    keys = sorted(key for found in partitions.values() for key, _, _ in found)
    assert counts.selected == len(keys)
    return keys, check_counts(counts)
