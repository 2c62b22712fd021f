# The run that the config describes, and what its jobs take; no rules. The logic is in kiln/workflow.
import inspect
import sys
from functools import cache, partial

sys.path.insert(0, CODE)

from kiln.aws import batch, preflight
from kiln.workflow import commands
from kiln.workflow.config import check_files, complete_config
from kiln.workflow.commands import rule_flags, shell_line
from kiln.workflow.run import Run
from kiln.workflow.snakemake_adapter import as_warning, as_workflow_error, input_function, jobs_run_here
from kiln.workflow.snakemake_adapter import log_job_counts, log_path, or_exit, store_endpoint, store_secrets

IS_MODULE = workflow.modifier.is_module
if IS_MODULE:  # the rules of the importing workflow keep their shell prefix
    config = as_workflow_error(complete_config, config, CODE)
else:
    as_workflow_error(check_files, workflow.configfiles)
    shell.prefix("set -euo pipefail; export KILN_DRIVER_PID=$PPID; ")
log_job_counts(workflow)
STORAGE_ROOT = workflow.storage_settings.default_storage_prefix or ""
ELSEWHERE = not workflow.storage_settings.shared_fs_usage  # jobs run on machines that share no disk with this one
DRIVER = ELSEWHERE and workflow.is_main_process
RUN = as_workflow_error(
    Run, config, STORAGE_ROOT, lambda name: resolve_plan(name), workflow.modifier.path_modifier.replace_prefix
)
LOG = partial(log_path, bool(STORAGE_ROOT) and not ELSEWHERE, local)
LOGS, BENCHMARKS = RUN.paths.logs, RUN.paths.benchmarks
CONDA = Path(CODE) / "envs" / "kiln.yaml"
REGIONS = preflight.RegionCheck(RUN)


def job(threads, mem_mb, gpus=0):
    """What a job takes, as the executor knows it."""
    resources = batch.JobResources(threads, mem_mb, gpus)
    return as_workflow_error(batch.smallest_fit, resources) if ELSEWHERE else resources


SMALL, MEDIUM, FETCH, MERGE = job(1, 1000), job(1, 2000), job(1, 8000), job(1, RUN.config["resources"]["merge_mem_mb"])
EMBED = job(
    RUN.config["resources"]["embed_threads"],
    RUN.config["resources"]["embed_mem_mb"],
    int(RUN.config["resources"]["device"] != "cpu"),
)
if STORAGE_ROOT and workflow.is_main_process:
    as_workflow_error(preflight.check_endpoint, STORAGE_ROOT, store_endpoint(workflow))
if DRIVER:
    as_workflow_error(
        preflight.check_store, STORAGE_ROOT, preflight.region_of_jobs(), RUN.config, store_secrets(workflow)
    )


def preflight_checks(wildcards):
    """No input: jobs at the beginning of the graph are submitted only where jobs can run."""
    if DRIVER and workflow.executor_plugin and workflow.executor_plugin.name == "aws-batch":
        as_workflow_error(preflight.check_executor, workflow.executor_settings, workflow.remote_execution_settings)
    return []
