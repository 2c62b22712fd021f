"""Checking a config: one line that names the key, the value, and what is expected."""

import copy
import random
from contextlib import suppress
from datetime import date

import pytest
import yaml
from snakemake.utils import update_config

from kiln.archives.registry import archives
from kiln.errors import ConfigError
from kiln.workflow.config import check_config, check_files, load_config, load_schema, typed_config
from kiln.workflow.run import Run
from tests import ROOT


@pytest.fixture
def config():
    return yaml.safe_load((ROOT / "config/config.yaml").read_text())


def change(config, path, value):
    *sections, key = path.split(".")
    changed = copy.deepcopy(config)
    section = changed
    for name in sections:
        section = section[name]
    if value is None and key.startswith("-"):
        del section[key[1:]]
    else:
        section[key] = value
    return changed


def test_the_default_config_is_valid(config):
    check_config(config)


@pytest.mark.parametrize("name", ["conus", "naip", "sentinel2", "bay-area-2021"])
def test_the_ready_configs_are_valid(config, name):
    changes = yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())

    def merge(base, changes):
        return {
            k: merge(base[k], changes[k]) if isinstance(changes.get(k), dict) and isinstance(base.get(k), dict)
            else changes.get(k, base.get(k))
            for k in {**base, **changes}
        }  # fmt: skip

    check_config(merge(config, changes))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("storag", "int8", "top level: unknown key 'storag'"),
        ("vector_dtypes", "int8", "Did you mean 'vector_dtype'"),
        ("naip.stats", ["nd"], "naip: unknown key 'stats'. Did you mean 'states'"),
        ("run", "A run", "run: 'A run' does not match"),
        ("datasets", ["landsat"], "datasets.0: 'landsat' is not one of"),
        ("datasets", ["naip", "naip"], "datasets: .*non-unique"),
        ("model.precision", "float64", "model.precision: 'float64' is not one of"),
        ("model.sha256", "abc", "model.sha256: 'abc' does not match"),
        ("model.untrained.dim", 18, "model.untrained.dim: 18 is not a multiple of 4"),
        ("worldcover.years", [2019], "worldcover.years.0: 2019 is less than the minimum of 2020"),
        ("worldcover.max_nodata", 1.5, "worldcover.max_nodata: 1.5 is greater than the maximum"),
        ("worldcover.chip_size", 20, "worldcover.chip_size: 20 is not a multiple of 8"),
        ("naip.bbox", [1, 2, 3], "naip.bbox"),
        ("naip.states", ["ND"], "naip.states.0: 'ND' does not match"),
        ("sentinel2.months", [13], "sentinel2.months.0: 13 is greater than the maximum of 12"),
        ("index.select.-max_rows", None, "index.select: 'max_rows' is a required property"),
        ("-resources", None, "top level: 'resources' is a required property"),
        ("-naip", None, "top level: 'naip' is a required property"),
        ("pictures.landsat", {"wms": None}, "pictures: unknown key 'landsat'"),
        ("pictures.naip", {"wms": {"url": "ftp://x", "version": "1.3.0", "layers": "a"}}, "pictures.naip"),
        ("resources.device", "gpu", "resources.device: 'gpu' does not match"),
        ("plan.chips_per_second", 0, "plan.chips_per_second"),
        ("embedding", "clas", "embedding: 'clas' is not one of"),
        ("embedding", "Class", "embedding: 'Class' is not one of"),
        ("vector_dtype", "float8", "vector_dtype: 'float8' is not one of"),
        ("patches", "maybe", "patches: 'maybe' is not of type 'boolean'"),
        ("max_failed_fraction", 2, "max_failed_fraction: 2 is greater than the maximum"),
        ("partitions", "nd-*", "partitions: 'nd-.' is not of type 'array'"),
        ("partitions", [""], "partitions.0"),
        ("run", None, "run: None is not of type 'string'"),
        ("run", "a/b", "run: 'a/b' does not match"),
        ("model", "untrained", "model: 'untrained' is not of type 'object'"),
        ("model.checkpoint", "", "model.checkpoint"),
        ("model.untrained.depth", 0, "model.untrained.depth: 0 is less than the minimum of 1"),
        ("worldcover.region", [1, 2], "worldcover.region"),
        ("worldcover.region", "france", "worldcover.region"),
        ("worldcover.years", [], "worldcover.years"),
        ("worldcover.pixels_per_degree", 24000, "worldcover.pixels_per_degree: 24000 is greater than the maximum"),
        ("worldcover.chip_size", "many", "worldcover.chip_size: 'many' is not of type 'integer'"),
        ("worldcover.metadata", "ones", "worldcover.metadata: 'ones' is not one of"),
        ("sentinel2.dates", "July 2020", "sentinel2.dates"),
        ("sentinel2.max_cloud", -0.1, "sentinel2.max_cloud: -0.1 is less than the minimum of 0"),
        ("naip.lattice", "mgrs", "naip.lattice: 'mgrs' is not one of"),
        ("resources.read_threads", 0, "resources.read_threads: 0 is less than the minimum of 1"),
        ("resources.embed_mem_mb", 8, "resources.embed_mem_mb: 8 is less than the minimum of 500"),
        ("pictures.neighbours", 51, "pictures.neighbours: 51 is greater than the maximum of 50"),
        ("index.published", [{"name": "a"}], "index.published.0"),
    ],
)
def test_a_wrong_config_is_one_line_that_names_the_key(config, path, value, message):
    with pytest.raises(ConfigError, match=message) as error:
        check_config(change(config, path, value))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("config: ")


def test_the_section_of_an_archive_that_is_not_embedded_may_be_absent(config):
    check_config({k: v for k, v in config.items() if k != "naip"} | {"datasets": ["worldcover"]})


def test_every_key_has_a_description_and_unknown_keys_are_refused_everywhere():
    def check(schema, path):
        for name, value in schema.get("properties", {}).items():
            assert "description" in value or "$ref" in value, f"{path}.{name}"
            check(value, f"{path}.{name}")
        for name, value in schema.get("$defs", {}).items():
            assert value["additionalProperties"] is not True, name
            check(value, name)

    schema = load_schema()
    check(schema, "config")
    for archive in archives():
        assert schema["properties"][archive]["additionalProperties"] is False


def test_values_of_random_types_raise_only_config_errors(config):
    rng = random.Random(0)
    values = [None, [], {}, "x", -1, 0.5, True, [None], {"a": 1}]
    for _ in range(300):
        section = config
        path = []
        while isinstance(section, dict) and section and (not path or rng.random() < 0.7):
            path.append(rng.choice(sorted(section)))
            section = section[path[-1]]
        with suppress(ConfigError):
            check_config(change(config, ".".join(path), rng.choice(values)))


def test_config_files_are_merged_as_snakemake_does(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(
        "run: x\nmodel: {checkpoint: untrained, untrained: {seed: 1, dim: 32}}\nlist: [1, 2]\nnone: {a: 1}\n"
    )
    second.write_text("model: {untrained: {seed: 2}}\nlist: [3]\nnone: null\nnew: {b: 2}\n")
    expected = yaml.safe_load(first.read_text())
    update_config(expected, yaml.safe_load(second.read_text()))
    assert load_config([first, second]) == expected


@pytest.mark.parametrize("text", ["- a list", "a: [", None])
def test_a_file_that_is_no_config_is_an_error(tmp_path, text):
    path = tmp_path / "a.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"a\.yaml: expected"):
        load_config([path])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: x\nnaip: {states: [nd]}\nnaip: {years: [2019]}\n", "line 3: .*'naip' a second time, first in line 2"),
        ("naip:\n  states: [nd]\n  years: []\n  states: [va]\n", "line 4: .*'states' a second time"),
        ("index: {select: {years: [2020], years: [2021]}}\n", "line 1: .*'years' a second time"),
        ("sentinel2: {tiles: [31, 010]}\n", "line 1: .*got 010, which YAML reads as 8. Write '010'"),
    ],
)
def test_what_the_values_of_a_file_no_longer_show_is_an_error(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    for check in (lambda: check_files([path]), lambda: load_config([path])):
        with pytest.raises(ConfigError, match=rf"a\.yaml, {message}"):
            check()


@pytest.mark.parametrize("text", ["", "tiles: ['010', 0, 10]\nfile: a/010\n", "# a comment\n"])
def test_a_file_without_such_errors_is_accepted(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    check_files([path])


@pytest.mark.parametrize(
    ("path", "given", "value"),
    [
        ("worldcover.years", ["2021"], [2021]),
        ("worldcover.region", ["-1", "43.5", "1", "44"], [-1, 43.5, 1, 44]),
        ("worldcover.region", "conus", "conus"),
        ("worldcover.max_nodata", "0.5", 0.5),
        ("model.untrained.dim", "32", 32),
        ("model.sha256", "null", "null"),
        ("run", "2021", "2021"),
        ("patches", "true", True),
        ("sentinel2.dates", date(2020, 7, 14), "2020-07-14"),
        ("sentinel2.bbox", ["1", "2", "3", "4"], [1, 2, 3, 4]),
        ("sentinel2.tiles", ["31"], ["31"]),
        ("sentinel2.max_cloud_cover", "null", None),
        ("naip.chip_size", "many", "many"),
        ("naip.chip_size", "", ""),
        ("partitions", ["2021"], ["2021"]),
    ],
)
def test_numbers_of_the_command_line_become_numbers(config, path, given, value):
    assert typed_config(change(config, path, given)) == change(config, path, value)


def test_a_run_takes_numbers_of_the_command_line(config):
    run = Run(change(config, "worldcover.years", ["2021"]))
    assert run.config["worldcover"]["years"] == [2021]
    assert run.datasets["worldcover"].fingerprint == Run(config).datasets["worldcover"].fingerprint
    assert "--years 2021" in " ".join(run.datasets["worldcover"].plan_flags)


def test_typed_values_change_no_config_that_is_right(config):
    assert typed_config(config) == config
