# Readers of the config and input functions; no rules.
import json
import os
import re
import shlex
import sys
from dataclasses import dataclass
from functools import cache, cached_property, partial

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

sys.path.insert(0, str(workflow.basedir))

from scripts.kiln import aws_batch, fingerprint as identity, lattice as lattices, plans
from scripts.kiln.aws_batch import Share
from scripts.kiln.errors import ConfigError, KilnError

# Shell commands find the package whatever the working directory is, and end when this process does.
CODE = shlex.quote(str(workflow.basedir)).replace("{", "{{").replace("}", "}}")
shell.prefix(f"set -euo pipefail; export PYTHONPATH={CODE}${{{{PYTHONPATH:+:$PYTHONPATH}}}} KILN_DRIVER_PID=$PPID; ")

RUN = f"results/{config['run']}"
LOGS = f"logs/{config['run']}"
BENCHMARKS = f"benchmarks/{config['run']}"
CONDA = Path(workflow.basedir) / "envs" / "kiln.yaml"
UNPINNED = "unpinned"  # stands for a digest that the config does not hold yet


def settings(*path):
    """A value of the config, by the names that lead to it."""
    return lookup(within=config, dpath="/".join(path))


def named(function, *arguments):
    """The function's value; what is wrong in the config is said without a traceback."""
    try:
        return function(*arguments)
    except ConfigError as e:
        raise WorkflowError(f"config: {e}")


def sound(function, *arguments):
    """The same, for what is wrong elsewhere."""
    try:
        return function(*arguments)
    except KilnError as e:
        raise WorkflowError(str(e))


WEIGHTS_DIGEST = named(identity.weights_digest, config["model"])
SELECT = {k: v for k, v in settings("index", "select").items() if v is not None}
PUBLISHED = settings("index", "published")
if SELECT.get("embedding") not in (None, config["embedding"]) and config["embedding"] != "both":
    raise WorkflowError(f"config: index.select.embedding {SELECT['embedding']}, but embedding {config['embedding']}")
if config["model"]["precision"] == "int8" and settings("resources", "device") != "cpu":
    raise WorkflowError("config: model.precision int8 is for CPUs, but resources.device is not: take bfloat16")
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


def asked(dataset, *keys):
    """What the config asks of a dataset's plan, as flags of its script; what is null or empty asks for nothing."""
    flags = []
    for key in keys:
        value, flag = config[dataset][key], f"--{key.replace('_', '-')}"
        if key == "bbox" and value:
            flags.append(f"{flag}={','.join(map(str, value))}")
        elif value not in (None, []):
            flags += [flag, *map(quoted, map(str, value if isinstance(value, list) else [value]))]
    return " ".join(flags)


def quoted(text):
    """For the shell, in a string whose wildcards are filled in."""
    return shlex.quote(text.replace("{", "{{").replace("}", "}}"))


def folder_flag(dataset):
    """Where a partition's shards and ledgers lie; a string with a wildcard, since a function costs every dry run."""
    return f"--folder {quoted(uri(dataset.folder))}/shards/{{partition}}"


def parts_flag(dataset):
    """Where finished units of unfinished shards are kept."""
    kept = uri(re.sub("^results", "parts", dataset.folder))
    return f"--parts {quoted(kept)}/{{partition}}"


def plan_uri(dataset):
    """The plan of all partitions, read where it lies: no input, since it is there once its shards are known."""
    return quoted(uri(dataset.plans[ALL]))


def pinned(value):
    """The value, unless the checkpoint's digest is unknown: then nothing but encoder_weights can run."""
    if WEIGHTS_DIGEST is None:
        from scripts.kiln import storage as storage_of  # only here, as in `existing`

        note = uri(weights_path())
        if storage_of.stat(note):
            found = json.loads(storage_of.read_bytes(note))["sha256"]
            raise WorkflowError(
                f"config: model.sha256 is missing. The checkpoint was fetched, and it is {found} ({note})."
            )
        raise WorkflowError(
            "config: model.sha256 is missing, and vectors must be traceable to weights. Run "
            "`snakemake --cores 1 encoder_weights` with this config: it fetches the checkpoint and prints the line to paste."
        )
    return value


def weights_path():
    """The extracted encoder; before a digest is known, the note that tells it."""
    if WEIGHTS_DIGEST is None:
        return f"results/models/{UNPINNED}-{identity.digest(config['model']['checkpoint'])[:8]}.json"
    return f"results/models/{WEIGHTS_DIGEST[:8]}-{config['model']['precision']}.safetensors"


def weights_of(dataset):
    """The weights, as input of embedding jobs; none where they lie on this machine's disk, since each costs dry runs.

    A checkpoint where there is finished work, or it would be redone.
    """
    if weights_here():
        return {}
    return {"weights": ancient(made_weights if dataset.begun else weights_path())}


def weights_here():
    """Whether the weights can be read where they lie; a store is not asked when the workflow is parsed."""
    return not STORAGE_ROOT and WEIGHTS_DIGEST is not None and os.path.isfile(weights_path())


def weights_flag():
    """What embedding commands are told of them."""
    return f"--weights {quoted(weights_path()) if weights_here() else '{input.weights:q}'}"


def made_weights(wildcards):
    pinned(None)
    return checkpoints.encoder_weights.get().output[0]


def begun(folder):
    """Whether a dataset's folder may hold shards; with results on a store it may."""
    return bool(STORAGE_ROOT) or os.path.isdir(f"{folder}/shards")


@dataclass(frozen=True)
class Dataset:
    """What the rules of a dataset share: its folder, its plans by merge partition, and the names of its shards.

    Where the plan alone tells the shards, `known` is None, and one plan of all partitions lies under `ALL`, with a small
    file of the shards' names beside it.
    """

    name: str
    folder: str
    plans: dict[str, str]
    known: dict[str, list[str]] | None
    begun: bool  # whether shards may exist, which a plan or weights made again must not redo; looked at once
    merging: tuple[str, ...] = ()  # flags of the merge that change a product

    @classmethod
    def of(cls, name, fingerprint, archive, shards):
        """A dataset of known shards. A plan's name changes with the units and the archive, a folder's with the values."""
        folder = f"{RUN}/{name}-{fingerprint[:8]}"
        plans = {p: f"{folder}/plan-{p}-{identity.digest([names, archive])[:8]}.jsonl" for p, names in shards.items()}
        return cls(name, folder, plans, shards, begun(folder))

    @classmethod
    def planned(cls, name, fingerprint, asked, merging=()):
        """A dataset whose shards its plan tells; a plan's name changes with what is asked of it."""
        folder = f"{RUN}/{name}-{fingerprint[:8]}"
        plan = f"{folder}/plan-{identity.digest(asked)[:8]}.jsonl.gz"
        return cls(name, folder, {ALL: plan}, None, begun(folder), tuple(merging))

    @property
    def names(self):
        """The file of the shards' names, beside a plan of all partitions."""
        return self.plans[ALL].replace(".jsonl.gz", ".json")

    def plan_of(self, partition):
        """A partition's plan. A checkpoint if shards are to be known by it or exist already: they would be redone."""
        planner = getattr(checkpoints, f"plan_{self.name}")
        if self.known is None:
            return planner.get().output.plan
        if not self.begun:
            return self.plans[partition]
        digest = self.plans[partition].rpartition("-")[2].removesuffix(".jsonl")
        return planner.get(partition=partition, digest=digest).output[0]

    @cached_property
    def shards(self):
        """Names by partition; of a dataset that is not planned yet Snakemake asks again."""
        if self.known is not None:
            return self.known
        self.plan_of(ALL)
        return named(plans.read_names, uri(self.names))

    @cached_property
    def merged(self):
        """Those to merge: all, or with allow_missing those that exist."""
        if not config["allow_missing"]:
            return self.shards
        return {p: existing(f"{self.folder}/shards/{p}", names) for p, names in self.shards.items()}

    def shard_files(self, partition, names):
        return [f"{self.folder}/shards/{partition}/{name}.parquet" for name in names]

    def record(self, partition):
        """The product's record, named by its shards and how they are merged."""
        made_of = [self.merged[partition], *self.merging] if self.merging else self.merged[partition]
        return f"{self.folder}/products/{partition}/{identity.digest(made_of)[:16]}.json"

    def records(self):
        """Records by partition; none where no shard is there to merge."""
        return {p: self.record(p) for p, names in self.merged.items() if names}

    def targets(self, wanted=None):
        """Plans first (keys directly in the folder: one listing shows the rest), then shards, then products."""
        partitions = [p for p in self.shards if wanted is None or wanted(p)]
        shards = [] if config["allow_missing"] else [f for p in partitions for f in self.shard_files(p, self.shards[p])]
        records = self.records()
        return [*self.plans.values(), *shards, *(records[p] for p in partitions if p in records)]


ALL = ""  # as a partition: every one
DATASETS = {}  # by name; each dataset's rules add theirs


def existing(folder, names):
    """Those of the named shards that lie in a folder of the run."""
    from scripts.kiln import storage as storage_of  # only here: the workflow is parsed without a look at a store

    there = storage_of.listing(uri(folder)) if STORAGE_ROOT or os.path.isdir(folder) else {}
    return [n for n in names if f"{uri(folder)}/{n}.parquet" in there]


def plan_of(dataset, wildcards):
    """A job's plan; asked for by shards too that are asked for by name, so that none is read from afar unsaid."""
    if DRIVER:
        sound(near_archive, dataset)
    return DATASETS[dataset].plan_of(wildcards.partition)


def shards_of(dataset, wildcards):
    """A merge's input."""
    made = DATASETS[dataset]
    return pinned(made.shard_files(wildcards.partition, made.merged[wildcards.partition]))


def shards_uri(dataset, wildcards):
    """Where a partition's shards and ledgers lie, written by the scripts themselves."""
    return uri(f"{DATASETS[dataset].folder}/shards/{wildcards.partition}")


def product_uri(dataset, wildcards):
    """The folder of a product's files, beside its record."""
    return uri(f"{DATASETS[dataset].folder}/products/{wildcards.partition}/{wildcards.digest}")


def folder_of_shards(wildcards, input):
    """Where the shards lie on this machine: copies, if the run lies on object storage."""
    return os.path.dirname(str(input.shards[0]))


def targets_of(dataset, wildcards):
    """Everything of a dataset."""
    if dataset not in DATASETS:
        raise WorkflowError(f"config: {dataset} is not among `datasets`, or nothing of it is asked for")
    pinned(None)
    if DRIVER:
        sound(near_archive, dataset)  # of a dataset that is not planned yet too
    return DATASETS[dataset].targets()


@cache
def near_archive(dataset):
    """Stop, or with allow_cross_region say, where jobs would read an archive from another region.

    With every shard there is nothing to read, and nothing to say.
    """
    here = aws_batch.region_of_jobs()
    there = aws_batch.archive_region(config[dataset]["archive"], config[dataset]["archive_region"])
    if there in (None, here):
        return
    plans = [uri(plan) for plan in DATASETS[dataset].plans.values()]
    cost = aws_batch.moved(plans, settings("plan", "price_per_gb_moved"))
    if not cost:
        return
    told = f"{dataset}: the archive is in {there} and the jobs run in {here}: {cost}"
    if not config["allow_cross_region"]:
        raise ConfigError(f"{told} Take a queue and a bucket of {there}, or set allow_cross_region: true.")
    logger.warning(told)


def plans_of(dataset, wildcards):
    """The plans of a dataset, for themselves: of a lost one no shard is known, and nobody would miss any."""
    return list(DATASETS[dataset].plans.values()) if dataset in DATASETS else []


def targets_of_state(state, wildcards):
    """Everything of a state of NAIP's."""
    targets_of("naip", wildcards)
    mine = DATASETS["naip"].targets(re.compile(rf"{state}-\d+").fullmatch)
    return mine[1:] and mine or nothing(f"the plan has no scene of {state}: look at naip.states and naip.years")


def selected():
    """Records of the products that the explorer database takes."""
    datasets, partitions = SELECT.get("datasets"), SELECT.get("partitions")
    made = {d: DATASETS[d].records() for d in DATASETS if not datasets or d in datasets}
    known = {p for d in made for p in DATASETS[d].shards}
    if strange := set(partitions or ()) - known:
        raise WorkflowError(
            f"config: index.select.partitions: no {', '.join(strange)} among {', '.join(sorted(known))}"
        )
    return [r for records in made.values() for p, r in records.items() if not partitions or p in partitions]


def selected_records(wildcards):
    """The same, as input: nothing to search through is said, not built."""
    return pinned(selected()) or nothing(
        "no product to index or to draw: embed something first, or look at index.select"
    )


def indexed_records(wildcards):
    """Those that the database is made of: with published files there may be none."""
    return (pinned(selected()) if DATASETS else []) if PUBLISHED else selected_records(wildcards)


def selected_products(wildcards):
    """Their folders."""
    return [uri(r.removesuffix(".json")) for r in selected()]


def nothing(why):
    raise WorkflowError(f"nothing to do: {why}")


def every_plan(wildcards):
    """The plans of all datasets."""
    made = pinned([plan for dataset in DATASETS.values() for plan in dataset.plans.values()])
    return made or nothing("the config turns no dataset on")


def patch_counts():
    """Patches of a chip by dataset, where they are kept."""
    halves = {"worldcover": config["worldcover"]["encode"] == "quarters"}
    return {d: (config[d]["chip_size"] // 8 // (1 + halves.get(d, False))) ** 2 for d in DATASETS if config["patches"]}


def plan_uris(wildcards):
    return [uri(plan) for plan in every_plan(wildcards)]


def index_folder(wildcards):
    """Where the records of the index lie: one at a time, that of what the database holds."""
    return uri(f"{RUN}/index")


def index_digest():
    """What tells databases apart: the products in them, what was selected, and which published files are asked for.

    What lies there is the script's to see: nothing is looked up when the workflow is parsed.
    """
    return identity.digest([selected(), SELECT, *([PUBLISHED] if PUBLISHED else [])])[:16]


def index_record(wildcards):
    return f"{RUN}/index/{index_digest()}.json"


def picture(name, wildcards):
    """A picture of what the database holds."""
    return f"{RUN}/pictures/{index_digest()}/{name}"


def every_dataset():
    """Input functions: everything of each dataset, for itself, so that one waits for no other's plan."""
    plans = [every_plan] if DATASETS or not PUBLISHED else []
    return [*plans, *(partial(targets_of, name) for name in DATASETS)]


def index_targets(wildcards):
    """The products and the database of them; who asks for it asks for the shards too, or a deleted one is not noticed."""
    return [*indexed_records(wildcards), index_record(wildcards)]


def picture_targets(wildcards):
    """Published files have no ledger: of those alone there is no coverage to draw."""
    of_products = ("coverage.png", "ledger.html") if indexed_records(wildcards) else ()
    return [picture(name, wildcards) for name in (SIMILAR, *of_products)]
