"""The embedding rule of a dataset, read from the Snakefile, which alone names a job's command and files."""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kiln.aws.array_jobs import PARTITION, PLAN, SHARD, WEIGHTS, EmbedRule
from kiln.aws.batch import JobResources
from kiln.aws.code_bundle import ROOT
from kiln.errors import ConfigError

SNAKEFILE = ROOT / "Snakefile"


def read_embed_rule(dataset: str, configfiles: Sequence[Path], root: str) -> EmbedRule:
    """Read the rule `embed_<dataset>` for jobs on other machines.

    Args:
        dataset: Name of the archive.
        configfiles: The run's config files.
        root: s3:// URI of the run's storage.

    Raises:
        ConfigError: The workflow refuses the config, the bucket, local files or an archive in another region; the
            config does not contain the dataset; or the digest of the checkpoint is unknown.
    """
    from snakemake.api import SnakemakeApi
    from snakemake.exceptions import WorkflowError
    from snakemake.logging import logger
    from snakemake.settings.types import ConfigSettings, OutputSettings, Quietness, ResourceSettings, StorageSettings

    for file in configfiles:
        if not file.is_file():
            raise ConfigError(f"--configfile {file}: no such config file. Correct the path.")
    warnings = logging.StreamHandler()
    warnings.setLevel(logging.WARNING)
    try:
        with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
            logger.addHandler(warnings)
            workflow = api.workflow(
                resource_settings=ResourceSettings(),
                config_settings=ConfigSettings(configfiles=[f.resolve() for f in configfiles]),
                storage_settings=StorageSettings(
                    default_storage_provider="s3", default_storage_prefix=root, shared_fs_usage=frozenset()
                ),
                snakefile=SNAKEFILE,
            )._workflow  # the public API returns no rules
            return _rule(workflow, dataset)
    except WorkflowError as e:
        raise ConfigError(str(e).strip()) from e
    finally:
        logger.removeHandler(warnings)


def _rule(workflow: Any, dataset: str) -> EmbedRule:
    from snakemake.io import get_flag_value
    from snakemake.utils import QuotedFormatter

    names = workflow.globals
    if dataset not in names["DATASETS"]:
        configured = ", ".join(names["DATASETS"]) or "none"
        raise ConfigError(f"datasets: expected {dataset} among them, got {configured}. Add it to the config.")
    names["pinned"](None)  # raises with advice where the checkpoint's digest is unknown
    names["sound"](names["near_archive"], dataset)
    rule, about, uri = workflow.get_rule(f"embed_{dataset}"), names["DATASETS"][dataset], names["uri"]
    threads, mem_mb = (int(rule.resources[name].value) for name in ("_cores", "mem_mb"))
    output = get_flag_value(rule.output[0], "storage_object").query
    flags = rule.params.flags.format(shard=SHARD, partition=PARTITION)
    shell = QuotedFormatter().format(
        rule.shellcmd,
        input=SimpleNamespace(weights=WEIGHTS, plan=PLAN),
        output=output,
        params=SimpleNamespace(flags=flags),
        wildcards=SimpleNamespace(shard=SHARD, partition=PARTITION),
        threads=threads,
        log="",
    )
    command, _, _ = shell.rpartition("2>")  # a Batch job logs to its standard error
    config = names["config"]
    return EmbedRule(
        dataset=dataset,
        run=config["run"],
        command=tuple(shlex.split(command)),
        output=output,
        plans={partition: uri(plan) for partition, plan in about.plans.items()},
        folder=uri(about.folder),
        weights=uri(names["weights_path"]()),
        resources=JobResources(threads, mem_mb, int(rule.resources["_gpus"].value) if "_gpus" in rule.resources else 0),
        chips_per_second=config["plan"]["chips_per_second"],
        price_per_hour=config["plan"]["price_per_hour"],
    )
