"""Where the workflow touches Snakemake itself."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake_interface_logger_plugins.common import LogEvent

from kiln.errors import KilnError
from kiln.io import storage

P = ParamSpec("P")
T = TypeVar("T")
SECRETS = ("access_key", "secret_key", "token")  # settings of Snakemake's S3 storage


def as_workflow_error(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return the function's value. A KilnError becomes a WorkflowError, which Snakemake prints without a traceback."""
    try:
        return function(*args, **kwargs)
    except KilnError as e:
        raise WorkflowError(str(e)) from e


def or_exit(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return the function's value, in an input function of a rule. Log a KilnError in one line, and end Snakemake.

    Snakemake wraps every exception of an input function in one of its own, of ten lines and a traceback.
    """
    try:
        return function(*args, **kwargs)
    except KilnError as e:
        logger.error(f"error: {e}")
        raise SystemExit(1) from None


def input_function(ask: Callable[[], Any]) -> Callable[[Any], Any]:
    """Return an input function of rules that asks for the same files, whichever the wildcards."""
    return lambda wildcards: or_exit(ask)


def as_warning(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """Return the function's value. Log a KilnError as a warning, each message once."""
    try:
        return function(*args, **kwargs)
    except KilnError as e:
        _warn(str(e))
        return None


@cache
def _warn(message: str) -> None:
    logger.warning(message)


def log_path(on_driver: bool, local: Callable[[str], Any], path: str) -> Any:
    """Return a log or benchmark, marked as local to this machine where results lie on a store and jobs run here.

    Args:
        on_driver: Whether the mark is needed. Each mark costs every dry run.
        local: Snakemake's mark.
        path: Path of the log.
    """
    return local(path) if on_driver else path


def remove_default_submission_rate(workflow: Any) -> None:
    """Remove the default limit on submissions per second, where results lie on a store.

    With any limit, Snakemake 9.25 to 9.27 schedules one more look for work after each look it takes, and asks the store
    for the input's size each time: requests grow with the square of the jobs. No upstream issue is known for it.
    """
    limit = workflow.scheduling_settings.max_jobs_per_timespan
    on_store = bool(workflow.storage_settings.default_storage_prefix)
    if on_store and limit and (limit.max_jobs, limit.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None


def log_job_counts(workflow: Any) -> None:
    """Give logger plugins the number of jobs of each rule. Snakemake logs it once, before the plans are made.

    After each change of the graph, the next record of started jobs gets two attributes: `job_counts`, and `more_jobs`,
    which states whether a checkpoint may add jobs.
    """
    counted = (0, 0)

    def attach(record: Any) -> bool:
        nonlocal counted
        if getattr(record, "event", None) == LogEvent.JOB_STARTED:
            dag = workflow.dag
            size = len(dag), len(dag.checkpoint_jobs)
            if size != counted:  # counting takes time in a graph of many jobs
                counted = size
                record.job_counts = Counter(j.rule.name for j in {*dag.needrun_jobs(), *dag.finished_jobs})
                record.more_jobs = any(j.rule.is_checkpoint for j in dag.needrun_jobs())
        return True

    if workflow.logger_manager.get_log_handlers():
        logger.addFilter(attach)


def embeds(workflow: Any) -> bool:
    """Return whether the call makes results, and does not only look at them or plan them."""
    return not set(workflow.dag_settings.targets or ["all"]) <= {"plan", "summary", "delete_leftovers"}


def how_called(workflow: Any) -> dict[str, Any]:
    """Return how Snakemake was called, as `kiln.report.status.command.RunCommand` keeps it."""
    settings = workflow.config_settings
    values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.config.items()}
    return {
        "config_files": [str(path) for path in settings.configfiles],
        "config": [f"{key}={value}" for key, value in values.items()],
        "options": _profile_options(sys.argv),
        "snakefile": str(Path(workflow.main_snakefile).absolute()),
    }


def _profile_options(arguments: Sequence[str]) -> list[str]:
    """Return the profiles that a command line of Snakemake names. The workflow itself does not know them."""
    options = []
    for number, word in enumerate(arguments):
        name, _, value = word.partition("=")
        if name in ("--profile", "--workflow-profile"):
            options += [name, value or arguments[number + 1]]
    return options


def jobs_run_here(workflow: Any) -> bool:
    """Return whether jobs run on this machine: with Snakemake's own executor, and on its disks."""
    plugin = workflow.executor_plugin
    here = plugin is None or plugin.name in ("local", "dryrun")
    return bool(here and workflow.storage_settings.shared_fs_usage)


def check_database(workflow: Any, db: str) -> None:
    """Raise ConfigError if the call makes a database on a store that cannot hold one."""
    on_store = bool(workflow.storage_settings.default_storage_prefix)
    if on_store and set(workflow.dag_settings.targets or ["all"]) & {"all", "index"}:
        storage.require_conditional_put(db)


def store_endpoint(workflow: Any) -> str:
    """Return the endpoint that is given to Snakemake's S3 plugin alone; empty for none."""
    settings = workflow.storage_provider_settings.get("s3")
    values = settings.get_field_settings("endpoint_url").values() if settings else ()
    return next((str(value) for value in values if value), "")


def store_secrets(workflow: Any) -> list[str]:
    """Return the names of credentials given to the storage plugin, which would pass them on to the jobs."""
    settings = workflow.storage_provider_settings.get("s3")
    return [name for name in SECRETS if settings and any(settings.get_field_settings(name).values())]
