"""The generated files are up to date."""

import yaml

from kiln.archives.registry import archives
from kiln.workflow.config_files import generate
from tests import ROOT


def test_schemas_defaults_and_table_are_up_to_date():
    stale = [str(path.relative_to(ROOT)) for path, text in generate(ROOT).items() if path.read_text() != text]
    assert stale == [], "run python -m kiln.workflow.config_files"


def test_the_default_config_is_the_sample_run():
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    assert config["run"] == "sample"
    assert config["datasets"] == list(archives())
    for name, archive in archives().items():
        assert {key: config[name][key] for key in archive.sample} == dict(archive.sample)
