# Where jobs run, where their files lie, and what they take; no rules.
STORAGE_ROOT = workflow.storage_settings.default_storage_prefix or ""
# Jobs run on machines that share no disk with this one, as those of AWS Batch; here, on the one that sends them there.
ELSEWHERE = not workflow.storage_settings.shared_fs_usage
DRIVER = ELSEWHERE and workflow.is_main_process


def look_when_something_happens():
    """Take the default rate of submissions away where results lie on a store.

    With any, Snakemake 9.25 looks for work once a second more after each look it takes, for ever, and asks the store for
    the input's size each time: requests grow with the square of the jobs.
    """
    limit = workflow.scheduling_settings.max_jobs_per_timespan
    if STORAGE_ROOT and limit and (limit.max_jobs, limit.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None


def uri(path):
    """Where a path of the run really lies: below the default storage, if there is one."""
    return f"{STORAGE_ROOT.rstrip('/')}/{path}" if STORAGE_ROOT else path


def kept(path):
    """A log or benchmark: with the results where jobs run elsewhere, else on this machine; a mark costs every dry run."""
    return local(path) if STORAGE_ROOT and not ELSEWHERE else path


def share(threads, mem_mb, gpus=0):
    """What a job takes, as the executor has it."""
    asked = Share(threads, mem_mb, gpus)
    return named(aws_batch.fitted, asked) if ELSEWHERE else asked


SMALL, MEDIUM, PLAN, FETCH = share(1, 1000), share(1, 2000), share(2, 2000), share(1, 8000)
MERGE = share(1, settings("resources", "merge_mem_mb"))
EMBED = share(
    settings("resources", "embed_threads"),
    settings("resources", "embed_mem_mb"),
    int(settings("resources", "device") != "cpu"),
)


def secrets_of_storage():
    """Credentials given to the storage plugin, which it would pass on to the jobs."""
    given = workflow.storage_provider_settings.get("s3")
    return [k for k in ("access_key", "secret_key", "token") if given and any(given.get_field_settings(k).values())]


if DRIVER:
    sound(aws_batch.check_store, STORAGE_ROOT, aws_batch.region_of_jobs(), config, secrets_of_storage())


def ready(wildcards):
    """No input: of rules that begin the road, so that a job is submitted only where jobs can be."""
    plugin = workflow.executor_plugin
    if DRIVER and plugin and plugin.name == "aws-batch":
        asked, remote = workflow.executor_settings, workflow.remote_execution_settings
        sound(aws_batch.check_jobs, asked.job_queue, asked.job_role, remote.container_image, tuple(remote.envvars))
    return []


# What every embedding job is told, whatever the dataset.
ENGINE_FLAGS = (
    f"--storage {config['storage']} --embedding {config['embedding']}{' --patches' * config['patches']}"
    f" --max-failed-fraction {config['max_failed_fraction']}"
    f" --batch-size {settings('resources', 'batch_size')} --read-threads {settings('resources', 'read_threads')}"
    f" --read-ahead-mb {settings('resources', 'read_ahead_mb')} --device {settings('resources', 'device')}"
)


MERGE_MEMORY_MB = settings("resources", "merge_mem_mb") // 2
ALLOW_MISSING = ["--allow-missing"] if config["allow_missing"] else []
