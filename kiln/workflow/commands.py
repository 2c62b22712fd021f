"""The commands of a run's jobs, as lists of arguments: rules print them, array jobs run them, people copy them.

What differs between jobs of a rule stands in a command as a token. `shell_line` and `rule_flags` turn tokens into
Snakemake's expressions; `fill` into the values of one job.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from kiln.model.identity import UNTRAINED
from kiln.workflow.dataset import Dataset, section_flags
from kiln.workflow.run import Run

WEIGHTS, THREADS = "<weights>", "<threads>"
PARTITION, SHARD, DIGEST = "<partition>", "<shard>", "<digest>"
OUTPUT = "<output>"
RECORDS, PRODUCTS, INDEX = "<records>", "<products>", "<index>"
MAP, LEDGER, RUN_PAGE, PICTURES, PLANS = "<map>", "<ledger>", "<run page>", "<pictures>", "<plans>"
EXPRESSIONS = {  # of Snakemake, by token
    WEIGHTS: "{input.weights:q}",
    THREADS: "{threads}",
    PARTITION: "{wildcards.partition}",
    SHARD: "{wildcards.shard}",
    DIGEST: "{wildcards.digest}",
    OUTPUT: "{output:q}",
    RECORDS: "{input.records:q}",
    PRODUCTS: "{params.products:q}",
    INDEX: "{input.index:q}",
    MAP: "{output.map:q}",
    LEDGER: "{output.ledger:q}",
    RUN_PAGE: "{output.run:q}",
    PICTURES: "{input.pictures:q}",
    PLANS: "{params.plans:q}",
}
WILDCARDS = {PARTITION: "{partition}", SHARD: "{shard}", DIGEST: "{digest}"}  # in a rule's parameter
_TOKEN = re.compile("|".join(map(re.escape, EXPRESSIONS)))


def shell_line(command: Sequence[str], log: str = "2> {log:q}") -> str:
    """Return a command as a rule's shell line: arguments quoted, tokens as Snakemake's expressions.

    In front stands the rule's parameter `setup`: the environment that the command needs.
    """
    return " ".join(["{params.setup}" + _quote(command[0]), *map(_quote, command[1:]), log])


def setup(code: str, is_module: bool) -> str:
    """Return the variables in front of a rule's command: where the packages are, and the process to end with.

    Args:
        code: Folder of Kiln's code. In this folder itself, Python finds the packages without a variable.
        is_module: Whether another workflow imports the rules. Otherwise the shell prefix names the process.
    """
    place = "" if Path(code).samefile(".") else f"PYTHONPATH={shlex.quote(code)}${{PYTHONPATH:+:$PYTHONPATH}} "
    return f"KILN_DRIVER_PID=$PPID {place}" if is_module else place


def rule_flags(flags: Sequence[str]) -> str:
    """Return flags as a rule's parameter, in which Snakemake fills in the wildcards.

    A rule in a loop needs this: Snakemake evaluates its shell line when the job runs, and its parameters when the
    rule is defined.
    """
    return " ".join(_quote(flag, WILDCARDS) for flag in flags)


def _quote(argument: str, expressions: Mapping[str, str] = EXPRESSIONS) -> str:
    """Quote the literal parts of an argument for the shell and for Snakemake's format strings."""
    line, end = "", 0
    for token in _TOKEN.finditer(argument):
        line += _quote_literal(argument[end : token.start()]) + expressions[token[0]]
        end = token.end()
    return line + _quote_literal(argument[end:]) if line else _quote_literal(argument) or "''"


def _quote_literal(text: str) -> str:
    return shlex.quote(text.replace("{", "{{").replace("}", "}}")) if text else ""


def fill(command: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """Return the command of one job: tokens replaced by values. Raises KeyError for a token without one."""
    return [_TOKEN.sub(lambda token: values[token[0]], argument) for argument in command]


def script(name: str, *arguments: str) -> list[str]:
    """Return the command that runs one of Kiln's scripts."""
    return ["python", "-m", f"scripts.{name}", *arguments]


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def encoder_weights_command(run: Run) -> list[str]:
    """Return the command that extracts the encoder from the checkpoint."""
    model = run.config["model"]
    return script(
        "encoder_weights",
        *("--checkpoint", model["checkpoint"], f"--sha256={model['sha256'] or ''}", "--precision", model["precision"]),
        *("--untrained", _json(model["untrained"]), "--output", OUTPUT),
    )


def plan_flags(dataset: Dataset) -> list[str]:
    """Return the archive and the flags of the script that plans a dataset's shards, less its outputs."""
    return [dataset.name, *dataset.plan_flags]


def embed_flags(run: Run, dataset: Dataset) -> list[str]:
    """Return the archive and the flags of the script that embeds a shard, less weights, output and threads."""
    config, uri, resources = run.config, run.paths.uri, run.config["resources"]
    checkpoints = ["--checkpoints", f"{uri(dataset.checkpoints_folder)}/{PARTITION}"]
    return [
        *(dataset.name, "--units", uri(dataset.plan), "--shard", SHARD),
        *("--folder", f"{uri(dataset.folder)}/shards/{PARTITION}"),
        *(checkpoints if dataset.archive.checkpointed else ()),
        *("--job-record", f"{uri(dataset.job_records)}/{PARTITION}/{SHARD}.json"),
        *("--vector-dtype", config["vector_dtype"], "--embedding", config["embedding"]),
        *(("--patches",) if config["patches"] else ()),
        *("--max-failed-fraction", str(config["max_failed_fraction"]), "--batch-size", str(resources["batch_size"])),
        *("--read-threads", str(resources["read_threads"]), "--read-ahead-mb", str(resources["read_ahead_mb"])),
        *("--device", resources["device"], *section_flags(dataset.section, dataset.archive.embed_keys)),
        *("--expect-fingerprint", dataset.fingerprint[:8]),
    ]


def embed_command(run: Run, dataset: Dataset) -> list[str]:
    """Return the command that embeds one shard, with tokens for partition, shard, weights, output and threads."""
    outputs = ("--weights", WEIGHTS, "--output", OUTPUT, "--threads", THREADS)
    return script("embed", *embed_flags(run, dataset), *outputs)


def merge_flags(run: Run, dataset: Dataset) -> list[str]:
    """Return the flags of the script that merges a partition's shards, less the shards' folder and the record."""
    uri = run.paths.uri
    return [
        *("--plan", uri(dataset.plan), "--partition", PARTITION),
        *("--ledgers", f"{uri(dataset.folder)}/shards/{PARTITION}"),
        *("--product", f"{uri(dataset.folder)}/products/{PARTITION}/{DIGEST}"),
        *("--costs", uri(dataset.cost_record)),
        *("--memory-mb", str(run.config["resources"]["merge_mem_mb"] // 2)),
        *(("--allow-missing",) if dataset.allow_missing else ()),
        *dataset.merge_flags,
    ]


def index_command(run: Run) -> list[str]:
    """Return the command that builds or grows the explorer database."""
    uri, paths = run.paths.uri, run.paths
    return script(
        "build_index",
        *("--records", RECORDS, "--products", PRODUCTS, "--db", uri(paths.database), "--record", OUTPUT),
        *("--withdraw", uri(f"{paths.results}/index"), "--select", _json(run.select)),
        *("--published", _json(run.published)),
    )


def contact_sheet_command(run: Run) -> list[str]:
    """Return the command that draws a chip and its nearest neighbours."""
    pictures = run.config["pictures"]
    return script(
        "picture_similar",
        *("--db", run.paths.uri(run.paths.database), "-k", str(pictures["neighbours"])),
        *("--pictures", _json(pictures), "--png", OUTPUT),
    )


def coverage_command(run: Run) -> list[str]:
    """Return the command that draws the coverage map, and writes pages of ledger and run, and the catalog."""
    return script(
        "coverage",
        *("--products", PRODUCTS, "--records", RECORDS, "--map", MAP, "--ledger", LEDGER, "--run-page", RUN_PAGE),
        *("--run", run.paths.uri(run.paths.results), "--runs", run.paths.uri(run.paths.costs)),
        *("--datasets", *(d.folder_name for d in run.datasets.values())),
        *("--price-per-hour", str(run.config["plan"]["price_per_hour"])),
    )


def summary_command(run: Run) -> list[str]:
    """Return the command that prints what the run holds."""
    db = run.paths.uri(run.paths.database)
    return script(
        "summary",
        *("--records", RECORDS, "--products", PRODUCTS, "--index", INDEX, "--db", db, "--pictures", PICTURES),
    )


def estimate_command(run: Run, on_this_machine: bool = True) -> list[str]:
    """Return the command that prints what the run takes, from its plans and finished shards.

    Args:
        run: The run.
        on_this_machine: Whether jobs run on this machine. Rates measured here say nothing about others.
    """
    config, resources = run.config, run.config["resources"]
    patches = {name: d.patches_per_chip for name, d in run.datasets.items() if config["patches"]}
    encoder = {
        "untrained": config["model"]["untrained"] if config["model"]["checkpoint"] == UNTRAINED else None,
        "precision": config["model"]["precision"],
        "device": resources["device"],
        "threads": resources["embed_threads"],
        "batch": resources["batch_size"],
    }
    return script(
        "estimate",
        *("--plans", PLANS, "--numbers", _json(config["plan"]), "--dimensions", str(run.vector_length)),
        *("--vector-dtype", config["vector_dtype"], "--embedding", config["embedding"], "--patches", _json(patches)),
        *("--encoder", _json(encoder), "--memory-mb", str(resources["embed_mem_mb"])),
        *("--chip-px", _json({name: d.encoded_px for name, d in run.datasets.items()})),
        *(("--tuned",) if on_this_machine else ()),
        *(("--partitions", *config["partitions"]) if config["partitions"] else ()),
        *(("--allow-missing",) if config["allow_missing"] else ()),
    )


def delete_leftovers_command(run: Run) -> list[str]:
    """Return the command that deletes the files of the run that belong to nothing."""
    uri, paths = run.paths.uri, run.paths
    return script("delete_leftovers", "--run", uri(paths.results), "--checkpoints", uri(paths.checkpoints))
