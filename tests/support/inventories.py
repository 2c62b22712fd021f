"""S3 inventories of small Sentinel-2 archives."""

import gzip
import hashlib
import json

from kiln.archives.sentinel2.item_name import parse_name

FOLDER = "sentinel-s2-l2a-cogs/"
SCHEMA = "Bucket, Key, Size, LastModifiedDate"
FILES = ("B02.tif", "SCL.tif", "thumbnail.jpg", "tileinfo_metadata.json")


def item_id(n, tile="29RKH", year=2020, month=2, sequence=0):
    return f"S2A_{tile}_{year}{month:02d}{n % 28 + 1:02d}_{sequence}_L2A"


def key(name):
    return FOLDER + parse_name(name).path


def keys_of(name, files=FILES):
    home = key(name).rpartition("/")[0]
    return [f"{home}/{f}" for f in (*files, f"{name}.json")]


def row(key, *more):
    return ",".join(f'"{v}"' for v in ("sentinel-cogs", key, *(more or ("20848", "2020-08-19T02:33:03.000Z")))) + "\n"


def text(keys):
    return "".join(map(row, keys)).encode()


def manifest(parts, schema=SCHEMA, **changes):
    """Return a manifest of parts, given as bytes by file name."""
    files = [
        {"key": f"inv/sentinel-cogs/all/data/{n}", "size": len(d), "MD5checksum": hashlib.md5(d).hexdigest()}
        for n, d in parts.items()
    ]
    head = {"sourceBucket": "sentinel-cogs", "destinationBucket": "arn:aws:s3:::inventories", "version": "2016-11-30"}
    return {**head, "creationTimestamp": "1", "fileFormat": "CSV", "fileSchema": schema, "files": files, **changes}


def put(folder, *texts, schema=SCHEMA, **changes):
    """Write a copied inventory with a part for each text and return the path of its manifest."""
    parts = {f"part{n}.csv.gz": gzip.compress(t) for n, t in enumerate(texts)}
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "2026-01-01T01-00Z").mkdir(exist_ok=True)
    for name, data in parts.items():
        (folder / "data" / name).write_bytes(data)
    path = folder / "2026-01-01T01-00Z" / "manifest.json"
    path.write_text(json.dumps(manifest(parts, schema, **changes)))
    return str(path)
