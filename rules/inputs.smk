# Input functions: what rules ask for; no rules. The logic is in kiln/workflow/run.py.


def setup(wildcards, input):
    """What stands in front of a command. Since it takes `input`, Snakemake never counts its change as a reason to run."""
    return commands.setup(CODE, IS_MODULE)


def require_digest():
    """Ask for the checkpoint's digest. A dry run, which needs no weights, only logs that it is missing."""
    (as_warning if workflow.dryrun else as_workflow_error)(RUN.require_checkpoint_digest)


def resolve_plan(name):
    """Return once the plan is made. Shards need weights, so a missing digest is an error before the plan is made."""
    require_digest()
    getattr(checkpoints, f"plan_{name}").get()


def weights_of(name, wildcards):
    """The encoder. A checkpoint where shards may exist, or remade weights would cause them to be embedded again."""
    require_digest()
    if DRIVER:
        as_workflow_error(REGIONS.check, name)
    if RUN.dataset(name).may_have_shards:
        return checkpoints.encoder_weights.get().output[0]
    return RUN.weights


def shards_of(name, wildcards):
    """The shards that a product is merged from."""
    dataset = RUN.dataset(name)
    return dataset.shard_files(wildcards.partition, dataset.merged_shards[wildcards.partition])


def targets_of(name, wildcards):
    """Everything of a dataset."""
    dataset = as_workflow_error(RUN.dataset, name)
    if DRIVER:
        as_workflow_error(REGIONS.check, name)
    return as_workflow_error(dataset.targets)


def plans_of_all(wildcards):
    """The plans of all datasets, for themselves: without a plan no shard is known, and none would be missed."""
    return as_workflow_error(RUN.plans)


def records_of_index(wildcards):
    """The records that the database is made of. With published files there may be none."""
    return as_workflow_error(RUN.indexed_records)


def selected_products(wildcards):
    """The folders of the selected products."""
    return [RUN.paths.uri(record.removesuffix(".json")) for record in RUN.selected_records()]


def index_targets(wildcards):
    """The products and their database. Whoever asks for it asks for the products too, so a deleted one is noticed."""
    return [*records_of_index(wildcards), RUN.index_record()]


def selected_records(wildcards):
    """The records of the products to search through and to draw."""
    return as_workflow_error(RUN.required_records)


def picture(name, wildcards):
    """A picture of what the database holds."""
    return RUN.picture(name)


def picture_targets(wildcards):
    """Published files have no ledger: of those alone there is no coverage to draw."""
    of_products = ("coverage.png", "ledger.html") if records_of_index(wildcards) else ()
    return [RUN.picture(name) for name in (RUN.contact_sheet, *of_products)]
