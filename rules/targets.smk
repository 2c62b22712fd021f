# Datasets with their plans, shards and products, the index of them, and input functions; no rules.


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
    from kiln.io import storage as storage_of  # only here: the workflow is parsed without a look at a store

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


def every_plan(wildcards):
    """The plans of all datasets."""
    made = pinned([plan for dataset in DATASETS.values() for plan in dataset.plans.values()])
    return made or nothing("the config turns no dataset on")


def every_dataset():
    """Input functions: everything of each dataset, for itself, so that one waits for no other's plan."""
    plans = [every_plan] if DATASETS or not PUBLISHED else []
    return [*plans, *(partial(targets_of, name) for name in DATASETS)]


def nothing(why):
    raise WorkflowError(f"nothing to do: {why}")


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


def index_targets(wildcards):
    """The products and the database of them; who asks for it asks for the shards too, or a deleted one is not noticed."""
    return [*indexed_records(wildcards), index_record(wildcards)]


def picture_targets(wildcards):
    """Published files have no ledger: of those alone there is no coverage to draw."""
    of_products = ("coverage.png", "ledger.html") if indexed_records(wildcards) else ()
    return [picture(name, wildcards) for name in (SIMILAR, *of_products)]


def patch_counts():
    """Patches of a chip by dataset, where they are kept."""
    halves = {"worldcover": config["worldcover"]["encode"] == "quarters"}
    return {d: (config[d]["chip_size"] // 8 // (1 + halves.get(d, False))) ** 2 for d in DATASETS if config["patches"]}


def plan_uris(wildcards):
    return [uri(plan) for plan in every_plan(wildcards)]
