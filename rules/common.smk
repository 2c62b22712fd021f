# Readers of the config and input functions; no rules.
import json
import os
import sys

from snakemake.exceptions import WorkflowError

sys.path.insert(0, str(workflow.basedir))

from scripts.kiln import fingerprint as identity, lattice as lattices
from scripts.kiln.errors import ConfigError

# Shell commands find the package whatever the working directory is, and end when this process does.
shell.prefix(
    f"set -euo pipefail; export PYTHONPATH={workflow.basedir}${{{{PYTHONPATH:+:$PYTHONPATH}}}} KILN_DRIVER_PID=$PPID; "
)

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
STORAGE_ROOT = workflow.storage_settings.default_storage_prefix or ""


def uri(path):
    """Where a path of the run really lies: below the default storage, if there is one."""
    return f"{STORAGE_ROOT.rstrip('/')}/{path}" if STORAGE_ROOT else path


def uris(paths):
    """The same of several."""
    return [uri(p) for p in paths]


def pinned(value):
    """The value, unless the checkpoint's digest is unknown: then nothing but encoder_weights can run."""
    if WEIGHTS_DIGEST is None:
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


def encoder(wildcards):
    """The weights, as input of an embedding job."""
    return pinned(weights_path())


def folder_of_shards(wildcards, input):
    """Where the shards lie on this machine: copies, if the run lies on object storage."""
    return os.path.dirname(str(input.shards[0]))


def existing(folder, names):
    """Those of the named shards that lie in a folder of the run."""
    from scripts.kiln import storage

    have = storage.listing(uri(folder)) if STORAGE_ROOT or os.path.isdir(folder) else {}
    return [n for n in names if f"{uri(folder)}/{n}.parquet" in have]
