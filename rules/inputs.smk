# Input functions: what rules ask for; no rules. The logic is in kiln/workflow/run.py and dataset.py.


SETUP = cache(partial(commands.setup, CODE, IS_MODULE))  # the same for all jobs of this process


def setup(wildcards, input):
    """What stands in front of a command. Since it takes `input`, Snakemake never counts its change as a reason to run."""
    return SETUP()


setup.__signature__ = inspect.signature(setup)  # Snakemake asks for it several times a job


def require_digest():
    """Ask for the checkpoint's digest. A dry run, which needs no weights, only logs that it is missing."""
    (as_warning if workflow.dryrun else or_exit)(RUN.require_checkpoint_digest)


def resolve_plan(name):
    """Return once the plan is made. Shards need weights, so a missing digest is an error before the plan is made."""
    require_digest()
    getattr(checkpoints, f"plan_{name}").get()


def weights_of(name):
    """The encoder. A checkpoint where shards may exist, or remade weights would cause them to be embedded again."""

    def weights(wildcards):  # Snakemake looks at its signature for each job, which takes twice as long for a partial
        require_digest()
        if DRIVER:
            or_exit(REGIONS.check, name)
        if RUN.dataset(name).may_have_shards:
            return checkpoints.encoder_weights.get().output[0]
        return RUN.weights

    weights.__signature__ = inspect.signature(weights)
    return weights


def shards_of(name, wildcards):
    """The shards that a product is merged from."""
    dataset = RUN.dataset(name)
    return dataset.shard_files(wildcards.partition, dataset.merged_shards[wildcards.partition])


def targets_of(name, wildcards, shards_only=False):
    """Everything of a dataset, or its plan and shards alone."""
    dataset = or_exit(RUN.dataset, name)
    if DRIVER:
        or_exit(REGIONS.check, name)
    return or_exit(dataset.shard_targets if shards_only else dataset.targets)


shards_alone_of = partial(targets_of, shards_only=True)
PRODUCTS = [input_function(RUN.plans), *(partial(targets_of, name) for name in RUN.datasets)]
