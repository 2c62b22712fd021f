"""Items, lists and archives of Sentinel-2, plans of them, and refusals."""

import json
from pathlib import Path

import pytest
from shapely.geometry import mapping

from kiln.archives.sentinel2.item_name import footprint, parse_name
from kiln.errors import ConfigError
from tests.support import plans
from tests.support.inventories import item_id, key
from tests.support.stac_api import COLLECTION

S3 = "s3://sentinel-cogs/"
WEB = "https://sentinel-cogs.s3.us-west-2.amazonaws.com/"
VERSION_0 = "S2A_29RKH_20200219_0_L2A"
VERSION_1 = "S2A_29RKH_20200219_1_L2A"


def item_document(name, sensing="112120", baseline="02.14", cloud=5.0, generated="2020-02-19T12:39:47Z", **changes):
    """Return an item of Earth Search v1 with the fields that a plan needs."""
    parsed = parse_name(name)
    day = f"{parsed.year}{parsed.month:02d}{parsed.day:02d}"
    properties = {
        "datetime": f"{day[:4]}-{day[4:6]}-{day[6:]}T11:34:25.405000Z",
        "platform": f"sentinel-2{parsed.platform[-1].lower()}",
        "eo:cloud_cover": cloud,
        "mgrs:utm_zone": parsed.zone,
        "mgrs:latitude_band": parsed.band,
        "mgrs:grid_square": parsed.square,
        "s2:processing_baseline": baseline,
        "s2:generation_time": generated,
        "s2:datastrip_id": f"S2A_OPER_MSI_L2A_DS_MPS__20200219T123947_S{day}T{sensing}_N{baseline}",
        **changes,
    }
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": COLLECTION,
        "geometry": mapping(footprint(parsed.tile)),
        "properties": properties,
        "links": [{"rel": "canonical", "href": S3 + key(name), "type": "application/json"}],
        "assets": {},
    }


def write_archive(folder, documents):
    """Write items to a folder in the layout of the archive and return the folder."""
    for document in documents:
        path = folder / key(document["id"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))
    return str(folder)


def write_list(folder, lines, name="items.txt"):
    path = folder / name
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def plan_bytes(output, **settings):
    """Plan with these settings and return the bytes of the plan."""
    return plans.write("sentinel2", output, **{k: str(v) if isinstance(v, Path) else v for k, v in settings.items()})


def units_of(data):
    return sorted(plans.units(data))


def refusal(tmp_path, error=ConfigError, **settings):
    """Return the message of an error that leaves no plan."""
    with pytest.raises(error) as e:
        plan_bytes(tmp_path / "out" / "plan.gz", **settings)
    assert not list(tmp_path.glob("out/*"))
    return str(e.value)


def check_counts(counts):
    assert counts.lines == counts.items + counts.others.total() + len(counts.unreadable)
    gone = counts.filtered + counts.cloudy + counts.superseded + counts.duplicates
    assert counts.items == counts.selected + gone
    return counts


IDS = [item_id(n, tile, month=m) for tile in ("29RKH", "29RLH", "30RTN") for m in (2, 3) for n in range(20)]
DOCUMENTS = [item_document(i, cloud=5.0 * (n % 20)) for n, i in enumerate(IDS)]
ALL_DATES = {"dates": "2020-01-01/2020-12-31"}
