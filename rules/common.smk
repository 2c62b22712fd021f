# Readers of the config and input functions; no rules.
import json
import os
import shlex
import sys
from dataclasses import dataclass
from functools import partial

from snakemake.exceptions import WorkflowError

sys.path.insert(0, str(workflow.basedir))

from scripts.kiln import fingerprint as identity, lattice as lattices
from scripts.kiln.errors import ConfigError

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


WEIGHTS_DIGEST = named(identity.weights_digest, config["model"])
SELECT = {k: v for k, v in settings("index", "select").items() if v is not None}
STORAGE_ROOT = workflow.storage_settings.default_storage_prefix or ""


def uri(path):
    """Where a path of the run really lies: below the default storage, if there is one."""
    return f"{STORAGE_ROOT.rstrip('/')}/{path}" if STORAGE_ROOT else path


# What every embedding job is told, whatever the dataset.
ENGINE_FLAGS = (
    f"--storage {config['storage']} --max-failed-fraction {config['max_failed_fraction']}"
    f" --batch-size {settings('resources', 'batch_size')} --read-threads {settings('resources', 'read_threads')}"
    f" --read-ahead-mb {settings('resources', 'read_ahead_mb')} --device {settings('resources', 'device')}"
)


def pinned(value):
    """The value, unless the checkpoint's digest is unknown: then nothing but encoder_weights can run."""
    if WEIGHTS_DIGEST is None:
        if os.path.exists(weights_path()):
            raise WorkflowError(
                f"config: model.sha256 is missing. The checkpoint was fetched: {weights_path()} tells it."
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


def finished_work():
    """Whether shards of this run may exist, which a plan or weights made again must not redo."""
    return bool(STORAGE_ROOT) or any(os.path.isdir(f"{d.folder}/shards") for d in DATASETS.values())


def encoder(wildcards):
    """The weights, as input of an embedding job: a checkpoint where there is finished work, or it would be redone."""
    pinned(None)
    return checkpoints.encoder_weights.get().output[0] if FINISHED_WORK else weights_path()


@dataclass(frozen=True)
class Dataset:
    """What the rules of a dataset share: its folder, and per merge partition the plan and the names of the shards."""

    folder: str
    plans: dict[str, str]
    shards: dict[str, list[str]]
    merged: dict[str, list[str]]  # all shards, or with allow_missing those that exist

    @classmethod
    def of(cls, name, fingerprint, archive, shards):
        """A dataset's paths. A plan's name changes with the units and the archive, a folder's with the fingerprint."""
        folder = f"{RUN}/{name}-{fingerprint[:8]}"
        plans = {p: f"{folder}/plan-{p}-{identity.digest([names, archive])[:8]}.jsonl" for p, names in shards.items()}
        merged = shards
        if config["allow_missing"]:
            merged = {p: existing(f"{folder}/shards/{p}", names) for p, names in shards.items()}
        return cls(folder, plans, shards, merged)

    def plan_digest(self, partition):
        """The last part of the plan's name."""
        return self.plans[partition].rpartition("-")[2].removesuffix(".jsonl")

    def shard_files(self, partition, names):
        return [f"{self.folder}/shards/{partition}/{name}.parquet" for name in names]

    def record(self, partition):
        """The product's record, named by its shards."""
        return f"{self.folder}/products/{partition}/{identity.digest(self.merged[partition])[:16]}.json"

    def records(self):
        """Records by partition; none where no shard is there to merge."""
        return {p: self.record(p) for p, names in self.merged.items() if names}


DATASETS = {}  # by name; each dataset's rules add theirs


def existing(folder, names):
    """Those of the named shards that lie in a folder of the run."""
    from scripts.kiln import storage as storage_of  # only here: nothing else asks a store when the workflow is parsed

    there = storage_of.listing(uri(folder)) if STORAGE_ROOT or os.path.isdir(folder) else {}
    return [n for n in names if f"{uri(folder)}/{n}.parquet" in there]


def plan_of(dataset, wildcards):
    """A partition's plan: a checkpoint where there is finished work, or it would be redone."""
    made, partition = DATASETS[dataset], wildcards.partition
    if not FINISHED_WORK:
        return made.plans[partition]
    planner = getattr(checkpoints, f"plan_{dataset}")
    return planner.get(partition=partition, digest=made.plan_digest(partition)).output[0]


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
    """Plans first (keys directly in the folder: one listing shows the rest), then shards, then products."""
    made = pinned(DATASETS[dataset])
    shards = [] if config["allow_missing"] else [f for p, n in made.shards.items() for f in made.shard_files(p, n)]
    return [*made.plans.values(), *shards, *made.records().values()]


def selected():
    """Records of the products that the explorer database takes."""
    datasets, partitions = SELECT.get("datasets"), SELECT.get("partitions")
    known = {p for d in DATASETS.values() for p in d.plans}
    if strange := set(partitions or ()) - known:
        raise WorkflowError(
            f"config: index.select.partitions: no {', '.join(strange)} among {', '.join(sorted(known))}"
        )
    return [
        record
        for name, dataset in DATASETS.items()
        for partition, record in dataset.records().items()
        if (not datasets or name in datasets) and (not partitions or partition in partitions)
    ]


def selected_records(wildcards):
    """The same, as input: nothing to search through is said, not built."""
    return pinned(selected()) or nothing(
        "no product to index or to draw: embed something first, or look at index.select"
    )


def selected_products(wildcards):
    """Their folders."""
    return [uri(r.removesuffix(".json")) for r in selected()]


def nothing(why):
    raise WorkflowError(f"nothing to do: {why}")


def every_plan(wildcards):
    """The plans of all datasets."""
    plans = pinned([plan for dataset in DATASETS.values() for plan in dataset.plans.values()])
    return plans or nothing("the config turns no dataset on")


def plan_uris(wildcards):
    return [uri(plan) for plan in every_plan(wildcards)]


def index_folder(wildcards):
    """Where the records of the index lie: one at a time, that of what the database holds."""
    return uri(f"{RUN}/index")


def index_targets(wildcards):
    """The shards too, or a deleted one would go unnoticed."""
    every_plan(wildcards)
    return [*(f for name in DATASETS for f in targets_of(name, wildcards)), *selected_records(wildcards), INDEX_RECORD]


def picture_targets(wildcards):
    return [SIMILAR, *(f"{PICTURES}/{name}" for name in ("coverage.png", "ledger.html"))]
