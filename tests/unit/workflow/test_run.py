"""A run without Snakemake: fingerprints, file names, selections, and contradicting settings."""

import copy
import json

import pytest
import yaml

from kiln.archives.registry import archives
from kiln.errors import ConfigError
from kiln.workflow.dataset import section_flags
from kiln.workflow.run import Run
from tests import ROOT

PINNED = {  # fingerprints of the sample's datasets; a change embeds archives again and belongs in CHANGELOG.md
    "worldcover": "03fb47d3",
    "naip": "c58085c3",
    "sentinel2": "d58caa2b",
}
SHARDS = {"nd-2019": ["a-001-1", "b-002-2"], "va-2016": ["c-001-3"]}


@pytest.fixture
def config():
    return yaml.safe_load((ROOT / "config/config.yaml").read_text())


def planned(tmp_path, monkeypatch, config, **changes):
    """Return a run in a temporary folder; its plans have `SHARDS`."""
    monkeypatch.chdir(tmp_path)
    run = Run(copy.deepcopy(config) | changes)
    for dataset in run.datasets.values():
        (tmp_path / dataset.names_file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / dataset.names_file).write_text(json.dumps(SHARDS))
    return run


def test_the_samples_fingerprints_are_pinned(config):
    assert {name: d.fingerprint[:8] for name, d in Run(config).datasets.items()} == PINNED


@pytest.mark.parametrize("dataset", list(PINNED))
def test_every_key_marked_as_changing_vectors_changes_the_fingerprint(config, dataset):
    model = archives()[dataset].load("config", "Config")
    before = Run(config).datasets[dataset].fingerprint
    other = {"chip_size": 64, "max_nodata": 0.2, "gsd": "actual", "lattice_gsd": 0.6, "offset_max_dark_fraction": 0.1,
             "max_cloud": 0.4, "pixels_per_degree": 600}  # fmt: skip
    for key, field in model.model_fields.items():
        value = config[dataset][key]
        schema = model.model_json_schema()["properties"][key]
        new = other.get(key, next((v for v in schema.get("enum", ()) if v != value), None))
        if new is None or key in ("lattice_gsd",):  # counts with the utm lattice alone
            continue
        changed = copy.deepcopy(config)
        changed[dataset][key] = new
        extra = field.json_schema_extra or {}
        same = Run(changed).datasets[dataset].fingerprint == before
        assert same != bool(extra.get("fingerprint")), key


def test_names_follow_from_the_plan_and_the_config(tmp_path, monkeypatch, config):
    run = planned(tmp_path, monkeypatch, config)
    naip = run.dataset("naip")
    assert naip.shards == SHARDS
    assert naip.folder == "results/sample/naip-c58085c3"
    assert naip.targets()[:3] == [naip.names_file, naip.plan, f"{naip.folder}/shards/nd-2019/a-001-1.parquet"]
    assert len(naip.targets()) == 2 + 3 + 2
    assert naip.checkpoints_folder == "checkpoints/sample/naip-c58085c3"
    assert len(run.selected_records()) == 6
    assert run.index_record() == f"results/sample/index/{run.index_digest()}.json"


def test_partitions_limit_everything(tmp_path, monkeypatch, config):
    run = planned(tmp_path, monkeypatch, config, partitions=["nd-*"])
    assert list(run.dataset("naip").shards) == ["nd-2019"]
    assert len(run.selected_records()) == 3
    nothing = planned(tmp_path, monkeypatch, config, partitions=["tx-*"])
    with pytest.raises(ConfigError, match=r"partitions: expected patterns that fit a partition of naip, got .*tx"):
        nothing.dataset("naip").targets()


def test_with_allow_missing_products_are_made_of_the_shards_that_exist(tmp_path, monkeypatch, config):
    run = planned(tmp_path, monkeypatch, config, allow_missing=True)
    naip = run.dataset("naip")
    shard = tmp_path / naip.shard_files("nd-2019", ["b-002-2"])[0]
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"")
    assert naip.merged_shards == {"nd-2019": ["b-002-2"], "va-2016": []}
    assert naip.targets()[2:] == [naip.record("nd-2019")]


def test_the_index_takes_the_selected_products(tmp_path, monkeypatch, config):
    index = copy.deepcopy(config["index"])
    index["select"] |= {"datasets": ["naip"], "partitions": ["va-2016"]}
    run = planned(tmp_path, monkeypatch, config, index=index)
    assert run.selected_records() == [run.dataset("naip").record("va-2016")]
    index["select"]["partitions"] = ["va-2017"]
    wrong = planned(tmp_path, monkeypatch, config, index=index)
    with pytest.raises(ConfigError, match=r"index\.select\.partitions: expected some of nd-2019, va-2016, got va-2017"):
        wrong.selected_records()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": {"select": {"embedding": "mean"}}}, "index.select.embedding: expected class"),
        ({"model": {"precision": "int8"}, "resources": {"device": "cuda"}}, "model.precision: expected bfloat16"),
        ({"naip": {"deduplicate": True}}, "deduplicate"),
        ({"sentinel2": {"items": None}}, "one of inventory, search, items"),
        ({"sentinel2": {"search": "https://a.b"}}, "one of inventory, search, items"),
        ({"worldcover": {"encode": "quarters", "chip_size": 24}}, "multiple of 16"),
        ({"model": {"untrained": {"heads": 5}}}, "heads"),
    ],
)
def test_settings_that_contradict_each_other_are_config_errors(config, changes, message):
    def merge(base, changes):
        return base | {k: merge(base[k], v) if isinstance(v, dict) else v for k, v in changes.items()}

    with pytest.raises(ConfigError, match=message):
        Run(merge(config, changes))


def test_without_the_checkpoints_digest_nothing_can_be_embedded(tmp_path, monkeypatch, config):
    monkeypatch.chdir(tmp_path)
    unpinned = config | {"model": config["model"] | {"checkpoint": "clay.ckpt"}}
    run = Run(unpinned)
    with pytest.raises(ConfigError, match=r"model.sha256: expected the checkpoint's digest, got none\. Run `snakemake"):
        run.require_checkpoint_digest()
    (tmp_path / run.weights).parent.mkdir(parents=True)
    (tmp_path / run.weights).write_text(json.dumps({"sha256": "ab" * 32}))
    with pytest.raises(ConfigError, match="It is abab"):
        Run(unpinned).require_checkpoint_digest()


def test_the_error_for_a_dataset_outside_the_config_names_it(config):
    with pytest.raises(ConfigError, match="datasets: expected naip among them, got worldcover"):
        Run(config | {"datasets": ["worldcover"]}).dataset("naip")


def test_flags_of_a_section():
    section = {
        "years": [2020, 2021],
        "bbox": [-1, 2, 3, 4],
        "states": [],
        "area": None,
        "deduplicate": True,
        "gsd": "x",
    }
    keys = ("years", "bbox", "states", "area", "deduplicate", "gsd")
    assert section_flags(section, keys) == ["--years", "2020", "2021", "--bbox=-1,2,3,4", "--deduplicate", "--gsd", "x"]
