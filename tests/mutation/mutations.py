"""The mistakes: each replaces a piece of one file, and names the tests that must fail then."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """A mistake.

    Attributes:
        path: The file.
        old: The piece, which occurs once.
        new: What replaces it.
        tests: Arguments of pytest, of which the first is a test file.
    """

    path: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def title(self) -> str:
        """The mistake in one line."""
        return f"{self.path}: {' '.join(self.old.split())} -> {' '.join(self.new.split()) or 'nothing'}"


UNIT = "tests/unit"
PLAN = f"{UNIT}/formats/test_plan_file.py"
DOWNLOADS = f"{UNIT}/io/test_storage_downloads.py"
HTTP = f"{UNIT}/io/test_storage_errors.py"
SCENE = f"{UNIT}/archives/sentinel2/test_scene.py"
VECTORS = f"{UNIT}/formats/test_vectors.py"
ORDER = f"{UNIT}/product/test_order.py"
SORT = f"{UNIT}/product/test_external_sort.py"
PARQUET = f"{UNIT}/formats/test_parquet.py"
INT8 = f"{UNIT}/model/test_int8.py"
LATTICE = f"{UNIT}/archives/worldcover/test_lattice.py"
SHARDS = f"{UNIT}/archives/test_stable_shards.py"
VERSIONS = f"{UNIT}/archives/sentinel2/test_versions.py"
DEDUPLICATE = f"{UNIT}/product/test_deduplicate.py"
GUARD = f"{UNIT}/explorer/web/test_guard.py"
FAULT = f"{UNIT}/io/test_fault.py"
GRID = f"{UNIT}/archives/test_utm_grid.py"
CHECKPOINTS = f"{UNIT}/engine/test_checkpoints_invalid.py"
MASKS = f"{UNIT}/archives/sentinel2/test_source_masks.py"
OFFSET = f"{UNIT}/archives/sentinel2/test_source_offset.py"
FAILED_READ = f"{UNIT}/archives/test_failed_read.py"
ARRAY = f"{UNIT}/aws/test_array_jobs.py"
SERVER = f"{UNIT}/explorer/web/test_server.py"
STORAGE = f"{UNIT}/io/test_storage.py"
STORES = f"{UNIT}/io/storage"
NAIP_ERRORS = f"{UNIT}/archives/naip/test_source_errors.py"
NAIP_REMOTE = f"{UNIT}/archives/naip/test_source_remote.py"
TILE_ERRORS = f"{UNIT}/archives/worldcover/test_source_errors.py"
TILES_REMOTE = f"{UNIT}/archives/worldcover/test_source_remote.py"
WEIGHTS = f"{UNIT}/model/test_weights.py"

MUTATIONS = (
    # plans and names
    Mutation(
        "kiln/formats/plan_file.py", "if end != _line_digest(body)", "if False and end != _line_digest(body)", (PLAN,)
    ),
    Mutation("kiln/formats/plan_file.py", "if match is None or match[1] != units:", "if match is None:", (PLAN,)),
    Mutation("kiln/formats/plan_file.py", "not PLAIN_NAME.fullmatch(name)", "not PLAIN_NAME.match(name)", (PLAN,)),
    Mutation("kiln/formats/plan_file.py", "if not least <= value <= most:", "if not least <= value:", (PLAN,)),
    Mutation(
        "kiln/archives/worldcover/source.py",
        "!= list(shard.units)",
        "!= list(shard.units) and False",
        (f"{UNIT}/archives/worldcover/test_source_plan.py",),
    ),
    Mutation("kiln/archives/stable_shards.py", "max(1, nominal * 4 // 3)", "max(1, nominal * 2)", (SHARDS,)),
    Mutation(
        "kiln/archives/stable_shards.py",
        "bisect_left(placed, (second_half",
        "bisect_left(placed, (second_half + 1",
        (SHARDS,),
    ),
    # downloads and stores
    Mutation(
        "kiln/io/storage/s3.py",
        "body = _get(uri, IfMatch=f'\"{etag}\"', **span)",
        "body = _get(uri, **span)",
        (DOWNLOADS,),
    ),
    Mutation(
        "kiln/io/storage/s3.py",
        'version = {"IfMatch": f\'"{etag}"\'} if etag else {}',
        "version: dict[str, str] = {}",
        (STORAGE, STORES, DOWNLOADS),
    ),
    Mutation("kiln/io/storage/http.py", ', "If-Range": f\'"{etag}"\'', "", (DOWNLOADS,)),
    Mutation("kiln/io/storage/http.py", "(start if response.status_code == 206 else 0)", "start", (DOWNLOADS,)),
    Mutation(
        "kiln/io/storage/http.py",
        'if etag and _etag(response) not in ("", etag):',
        "if False:",
        (STORAGE, HTTP, DOWNLOADS, STORES),
    ),
    Mutation("kiln/io/storage/http.py", "if status in TRANSIENT_STATUS:", "if status == 503:", (HTTP,)),
    Mutation("kiln/io/storage/http.py", "if status in (401, 403):", "if status == 401:", (HTTP, NAIP_REMOTE)),
    Mutation(
        "kiln/io/storage/http.py",
        'headers["Accept-Encoding"] = "identity"',
        'headers["Accept-Encoding"] = "gzip"',
        (STORAGE, DOWNLOADS, f"{UNIT}/archives/sentinel2/test_plan.py"),
    ),
    Mutation("kiln/io/storage/__init__.py", "and etag_file.read_text() == source.etag", "", (DOWNLOADS,)),
    Mutation(
        "kiln/io/storage/__init__.py", "if source.size >= 0 and size != source.size:", "if False:", (DOWNLOADS, HTTP)
    ),
    Mutation(
        "kiln/io/storage/local.py", "partial.replace(target)", "__import__('shutil').copy(partial, target)", (STORAGE,)
    ),
    Mutation("kiln/io/storage/local.py", "stat_.S_ISREG(status.st_mode)", "True", (STORAGE, HTTP)),
    # array jobs
    Mutation("kiln/aws/array_jobs.py", 'or not command[2].startswith("scripts.")', "", (ARRAY,)),
    Mutation("kiln/aws/array_jobs.py", "    check_is_script(command)\n", "", (ARRAY,)),
    Mutation("kiln/aws/array_jobs.py", "if index >= len(array.shards):", "if index > len(array.shards):", (ARRAY,)),
    # verdicts of failed reads
    Mutation("kiln/io/fault.py", "Proxy Authentication Required|", "", (FAULT,)),
    Mutation("kiln/io/fault.py", "|InvalidToken|", "|", (FAULT,)),
    Mutation("kiln/archives/failed_read.py", "if verdict.fault is not Fault.UNKNOWN:", "if False:", (FAILED_READ,)),
    Mutation("kiln/archives/failed_read.py", "if storage.stat(uri) != version:", "if False:", (FAILED_READ,)),
    Mutation(
        "kiln/archives/failed_read.py",
        "if stat != expected and storage.stat(uri) != stat:",
        "if False:",
        (FAILED_READ,),
    ),
    # Sentinel-2
    Mutation(
        "kiln/archives/sentinel2/scene.py",
        "cloud > max_cloud * (side**2 - empty)",
        "cloud > max_cloud * side**2",
        (SCENE, MASKS),
    ),
    Mutation(
        "kiln/archives/sentinel2/scene.py",
        "(empty > max_nodata * side**2)",
        "(empty >= max_nodata * side**2)",
        (SCENE, MASKS),
    ),
    Mutation("kiln/archives/sentinel2/scene.py", "| (empty == side**2)", "", (SCENE, MASKS)),
    Mutation(
        "kiln/archives/sentinel2/scene.py",
        "baseline_number(item.baseline) >= OFFSET_BASELINE",
        "baseline_number(item.baseline) > OFFSET_BASELINE",
        (SCENE, OFFSET),
    ),
    Mutation(
        "kiln/archives/sentinel2/scene.py",
        "if item.offset_applied:",
        "if item.offset_applied is not False:",
        (SCENE, OFFSET),
    ),
    Mutation(
        "kiln/archives/sentinel2/versions.py",
        "return max(a, b, key=lambda item: item.version)",
        "return min(a, b, key=lambda item: item.version)",
        (VERSIONS,),
    ),
    Mutation(
        "kiln/archives/sentinel2/versions.py", "item.item_id if is_alone else item.sensing", "item.sensing", (VERSIONS,)
    ),
    Mutation(
        "kiln/archives/sentinel2/source.py",
        "or set(items) != set(shard.units)",
        "",
        (f"{UNIT}/archives/sentinel2/test_source_errors.py",),
    ),
    # WorldCover, NAIP and the common grid
    Mutation(
        "kiln/archives/worldcover/lattice.py",
        "return (90 * self.ppd - y) / self.ppd",
        "return 90 - y * (1 / self.ppd)",
        (LATTICE,),
    ),
    Mutation(
        "kiln/archives/worldcover/lattice.py",
        "return int(-(-round(pixels, 6) // chip))",
        "return int(round(pixels, 6) // chip) + 1",
        (LATTICE,),
    ),
    Mutation(
        "kiln/archives/worldcover/source.py",
        "nodata = (side**2 - count) / side**2",
        "nodata = (side**2 - count) / (side**2 - 1)",
        (f"{UNIT}/archives/worldcover/test_source.py",),
    ),
    Mutation(
        "kiln/archives/worldcover/source.py",
        "if (stat.size, stat.etag) != (tile.size, tile.etag):",
        "if stat.size != tile.size:",
        (TILES_REMOTE, TILE_ERRORS),
    ),
    Mutation(
        "kiln/archives/utm_grid.py",
        "return (row + 1) * self.chip * self.gsd",
        "return row * self.chip * self.gsd",
        (GRID,),
    ),
    Mutation("kiln/archives/utm_grid.py", "MIN_VALID_WEIGHT = 0.5 - 1e-4", "MIN_VALID_WEIGHT = 0.6", (GRID,)),
    Mutation("kiln/archives/naip/scene.py", "if difference > SQUARE_TOLERANCE:", "if False:", (NAIP_ERRORS,)),
    Mutation("kiln/archives/naip/scene.py", "if metres != 1:", "if False:", (NAIP_ERRORS,)),
    # vectors and the model
    Mutation("kiln/formats/vectors.py", "MAX_LEVEL = 127", "MAX_LEVEL = 128", (VECTORS,)),
    Mutation("kiln/formats/vectors.py", "levels = np.rint(", "levels = np.trunc(", (VECTORS,)),
    Mutation("kiln/formats/vectors.py", "scale[~np.isfinite(magnitude)] = np.nan", "pass", (VECTORS,)),
    Mutation("kiln/model/int8.py", ".clamp_min_(MIN_SCALE) / MAX_WEIGHT", " / MAX_WEIGHT", (INT8,)),
    Mutation("kiln/model/int8.py", "(values / scale[:, None]).round_()", "(values / scale[:, None]).trunc_()", (INT8,)),
    Mutation(
        "kiln/model/weights.py",
        "if present != metadata[KEY]:",
        "if False:",
        (WEIGHTS, f"{UNIT}/model/test_content_digest.py"),
    ),
    Mutation("kiln/model/weights.py", "if heads * dim_head != inner:", "if False:", (WEIGHTS,)),
    Mutation("kiln/model/weights.py", "weights_only=True", "weights_only=False", (WEIGHTS,)),
    Mutation("kiln/model/checkpoint.py", "if digest != sha256:", "if False:", (f"{UNIT}/model/test_checkpoint.py",)),
    # engine
    Mutation(
        "kiln/engine/job.py",
        "if expect_fingerprint and not fingerprint.startswith(expect_fingerprint):",
        "if False:",
        (f"{UNIT}/engine/test_job.py",),
    ),
    Mutation("kiln/engine/checkpoints.py", "or len(rows) != entry.embedded", "", (CHECKPOINTS,)),
    Mutation(
        "kiln/engine/checkpoints.py",
        "digest([self.identity, unit.version])",
        "digest([self.identity])",
        (f"{UNIT}/engine/test_checkpoints.py",),
    ),
    # products
    Mutation(
        "kiln/formats/parquet.py",
        "page_checksum_verification=True,\n        )",
        "page_checksum_verification=False,\n        )",
        (PARQUET,),
    ),
    Mutation(
        "kiln/formats/footer_digest.py",
        "if hashlib.sha256(blank).hexdigest() != entry[2].decode():",
        "if False:",
        (PARQUET,),
    ),
    Mutation(
        "kiln/product/order.py",
        "mirror, swap = -(right & ~upper), upper - one",
        "mirror, swap = -(right & upper), upper - one",
        (ORDER,),
    ),
    Mutation(
        "kiln/product/order.py", "(values - low) * (last / extent)", "(values - low) * ((last + 1) / extent)", (ORDER,)
    ),
    Mutation(
        "kiln/product/deduplicate.py",
        "np.lexsort((nodata, row, col, zone))",
        "np.lexsort((-nodata, row, col, zone))",
        (DEDUPLICATE,),
    ),
    Mutation("kiln/product/deduplicate.py", '("chip_id", "ascending")', '("chip_id", "descending")', (DEDUPLICATE,)),
    # the explorer
    Mutation("kiln/explorer/web/guard.py", "if self._hosts and host not in self._hosts:", "if False:", (GUARD, SERVER)),
    Mutation("kiln/explorer/web/guard.py", '"X-Content-Type-Options": "nosniff",', "", (GUARD, SERVER)),
)
