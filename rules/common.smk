# Readers of the config, and what it says of weights and flags; no rules.
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

from kiln.archives.worldcover import lattice as lattices
from kiln.aws import batch as aws_batch
from kiln.formats import fingerprint as identity, plan_file as plans
from kiln.archives.registry import get_archive
from kiln.aws.batch import Share
from kiln.model.identity import RECIPE as MODEL_RECIPE, UNTRAINED, weights_digest
from kiln.errors import ConfigError, KilnError

# Shell commands find the package whatever the working directory is, and end when this process does.
CODE = shlex.quote(str(workflow.basedir)).replace("{", "{{").replace("}", "}}")
shell.prefix(f"set -euo pipefail; export PYTHONPATH={CODE}${{{{PYTHONPATH:+:$PYTHONPATH}}}} KILN_DRIVER_PID=$PPID; ")

RUN = f"results/{config['run']}"
LOGS = f"logs/{config['run']}"
BENCHMARKS = f"benchmarks/{config['run']}"
CONDA = Path(workflow.basedir) / "envs" / "kiln.yaml"
UNPINNED = "unpinned"  # stands for a digest that the config does not hold yet


def fingerprint_of(dataset, **values):
    """The fingerprint of an archive's chips."""
    archive = get_archive(dataset)
    recipes = {"clay": MODEL_RECIPE, dataset: archive.recipe}
    return identity.fingerprint(dataset, sensor=archive.sensor, recipes=recipes, **values)


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


WEIGHTS_DIGEST = named(weights_digest, config["model"])
SELECT = {k: v for k, v in settings("index", "select").items() if v is not None}
PUBLISHED = settings("index", "published")
if SELECT.get("embedding") not in (None, config["embedding"]) and config["embedding"] != "both":
    raise WorkflowError(f"config: index.select.embedding {SELECT['embedding']}, but embedding {config['embedding']}")
if config["model"]["precision"] == "int8" and settings("resources", "device") != "cpu":
    raise WorkflowError("config: model.precision int8 is for CPUs, but resources.device is not: take bfloat16")


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
        from kiln.io import storage as storage_of  # only here, as in `existing`

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
