"""Plans of NAIP scenes, and the flags of jobs that embed them."""

from kiln.archives.naip.keys import parse_key
from scripts import embed
from tests.support import plans

ND_KEYS = [f"nd/2019/100cm/rgbir_cog/47099/m_47099{n}_se_14_1_20190904.tif" for n in range(51, 60)]
UNDATED_KEY = "id/2015/100cm/rgbir_cog/48117/m_4811716_se_11_1.tif"


def make_plan(path, keys, archive, per_shard=100, chip=16):
    """Plan the scenes and return the path of the plan and its shards."""
    manifest = path.with_suffix(".txt")
    manifest.write_text("\n".join(keys) + "\n")
    settings = {"manifest": str(manifest), "archive": str(archive)}
    return plans.make_plan("naip", path, **settings, scenes_per_shard=per_shard, chip_size=chip)


def flags(units, line, folder, weights, *more):
    args = ["naip", "--units", units, "--index", line, "--folder", folder, "--weights", weights, "--threads", 1]
    return [str(t) for t in (*args, "--vector-dtype", "float32", *more)]


def unit_id(key):
    return parse_key(key).unit_id


def embed_all(units, lines, folder, weights, *more):
    for n in range(len(lines)):
        embed.main(flags(units, n, folder, weights, *more))
