"""A dataset's embedding rule, read from the Snakefile: the one place where a job's command and its files are named."""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kiln.errors import ConfigError

SNAKEFILE = Path(__file__).parents[2] / "Snakefile"
SHARD, PARTITION, PLAN, WEIGHTS = "{shard}", "{partition}", "{plan}", "{weights}"  # what a job fills in


@dataclass(frozen=True)
class EmbedRule:
    """What one embedding job runs and takes. All files are URIs below the run's storage.

    `command` is the rule's, as arguments, less its log: SHARD, PARTITION, PLAN and WEIGHTS (a local path) stand for
    what differs between jobs, in it and in `output`. `plans` are by merge partition, or one of all under ''.
    """

    dataset: str
    command: tuple[str, ...]
    output: str
    plans: dict[str, str]
    folder: str
    weights: str
    threads: int
    mem_mb: int
    gpus: int
    config: dict[str, Any]


def read(dataset: str, configfiles: Sequence[Path], root: str) -> EmbedRule:
    """The rule `embed_<dataset>` with these configs and the results below `root`, an s3:// URI, for jobs elsewhere.

    Raises ConfigError for whatever the workflow finds wrong: of the config, the bucket, files that lie on this machine,
    an archive in another region; and for a dataset that the config does not do, or weights that it does not pin.
    """
    from snakemake.api import SnakemakeApi
    from snakemake.exceptions import WorkflowError
    from snakemake.logging import logger
    from snakemake.settings.types import ConfigSettings, OutputSettings, Quietness, ResourceSettings, StorageSettings

    for file in configfiles:
        if not file.is_file():
            raise ConfigError(f"{file}: no such config")
    warnings = logging.StreamHandler()
    warnings.setLevel(logging.WARNING)
    try:
        with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
            logger.addHandler(warnings)  # the rest of what Snakemake says is of no interest here
            workflow = api.workflow(
                resource_settings=ResourceSettings(),
                config_settings=ConfigSettings(configfiles=[f.resolve() for f in configfiles]),
                storage_settings=StorageSettings(
                    default_storage_provider="s3", default_storage_prefix=root, shared_fs_usage=frozenset()
                ),
                snakefile=SNAKEFILE,
            )._workflow  # parsed, with its checks; the API hands on no rule
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
        done = ", ".join(names["DATASETS"]) or "nothing"
        raise ConfigError(f"{dataset}: the config does not do it, but {done}; look at `datasets`")
    names["pinned"](None)  # stops with advice where the checkpoint's digest is unknown
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
    command, _, _ = shell.rpartition("2>")  # a job of its own logs to its standard error
    config = names["config"]
    return EmbedRule(
        dataset=dataset,
        command=tuple(shlex.split(command)),
        output=output,
        plans={partition: uri(plan) for partition, plan in about.plans.items()},
        folder=uri(about.folder),
        weights=uri(names["weights_path"]()),
        threads=threads,
        mem_mb=mem_mb,
        gpus=int(rule.resources["_gpus"].value) if "_gpus" in rule.resources else 0,
        config=config,
    )
