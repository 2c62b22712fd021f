# ESA WorldCover: plan -> embed -> merge, a partition a year.


WC = config["worldcover"]
WC_LATTICE = named(lattices.Lattice, WC["chip_size"], WC["pixels_per_degree"])
WC_COLUMNS = named(lattices.region_columns, WC_LATTICE, WC["region"]) if WC["years"] else []
WC_SHARDS = {
    str(year): [s.name for s in lattices.shards(WC_LATTICE, year, WC_COLUMNS, WC["columns_per_shard"])]
    for year in WC["years"]
}
WC_FINGERPRINT = identity.fingerprint(
    "worldcover",
    weights=WEIGHTS_DIGEST or UNPINNED,
    precision=config["model"]["precision"],
    dtype=config["storage"],
    metadata=WC["metadata"],
    gsd=WC["gsd"],
    max_nodata=WC["max_nodata"],
    max_cloud=None,
    lattice={"chip_size": WC["chip_size"], "pixels_per_degree": WC["pixels_per_degree"], "encode": WC["encode"]},
)[:8]
WC_DIR = f"{RUN}/worldcover-{WC_FINGERPRINT}"


def worldcover_plan(year):
    """The year's plan: it changes with the units and the archive."""
    return f"{WC_DIR}/plan-{year}-{identity.digest([WC_SHARDS[year], WC['archive']])[:8]}.jsonl"


def worldcover_plan_of(wildcards):
    return worldcover_plan(wildcards.year)


def worldcover_shard_names(year):
    """The shards a product is made of: all, or with allow_missing those that exist."""
    if config["allow_missing"]:
        return existing(f"{WC_DIR}/shards/{year}", WC_SHARDS[year])
    return WC_SHARDS[year]


WC_MERGED = {year: worldcover_shard_names(year) for year in WC_SHARDS}


def worldcover_shards(wildcards):
    return pinned([f"{WC_DIR}/shards/{wildcards.year}/{name}.parquet" for name in WC_MERGED[wildcards.year]])


def worldcover_records(year):
    """The product's record, named by its shards; none if no shard is there to merge."""
    names = WC_MERGED[year]
    return [f"{WC_DIR}/products/{year}/{identity.digest(names)[:16]}.json"] if names else []


def worldcover_targets(wildcards):
    """Plans first (keys directly in the folder: one listing shows the rest), then shards, then products."""
    pinned(None)
    targets = [worldcover_plan(year) for year in WC_SHARDS]
    if not config["allow_missing"]:
        targets += [f"{WC_DIR}/shards/{year}/{name}.parquet" for year in WC_SHARDS for name in WC_SHARDS[year]]
    return targets + [record for year in WC_SHARDS for record in worldcover_records(year)]


rule plan_worldcover:
    output:
        f"{WC_DIR}/plan-{{year}}-{{digest}}.jsonl",
    log:
        local(f"{LOGS}/plan_worldcover/{{year}}-{{digest}}.log"),
    benchmark:
        local(f"{BENCHMARKS}/plan_worldcover/{{year}}-{{digest}}.tsv")
    conda:
        CONDA
    threads: 1
    resources:
        mem_mb=1000,
    params:
        archive=WC["archive"],
        region=WC["region"] if isinstance(WC["region"], str) else ",".join(map(str, WC["region"])),
        chip_size=WC["chip_size"],
        ppd=WC["pixels_per_degree"],
        per_shard=WC["columns_per_shard"],
    message:
        "WorldCover {wildcards.year}: which tiles exist"
    shell:
        "python -m scripts.plan_worldcover --archive {params.archive:q} --year {wildcards.year}"
        " --region={params.region} --chip-size {params.chip_size} --pixels-per-degree {params.ppd}"
        " --columns-per-shard {params.per_shard} --output {output:q} 2> {log:q}"


rule embed_worldcover:
    input:
        weights=ancient(encoder),
        plan=ancient(worldcover_plan_of),
    output:
        f"{WC_DIR}/shards/{{year}}/{{shard}}.parquet",
    log:
        local(f"{LOGS}/embed_worldcover/{{year}}/{{shard}}.log"),
    benchmark:
        local(f"{BENCHMARKS}/embed_worldcover/{{year}}/{{shard}}.tsv")
    conda:
        CONDA
    threads: settings("resources", "embed_threads")
    resources:
        mem_mb=settings("resources", "embed_mem_mb"),
    params:
        folder=uri(f"{WC_DIR}/shards/{{year}}"),
        fingerprint=WC_FINGERPRINT,
        encode=WC["encode"],
        max_nodata=WC["max_nodata"],
        metadata=WC["metadata"],
        gsd=WC["gsd"],
        dtype=config["storage"],
        max_failed=config["max_failed_fraction"],
        batch=settings("resources", "batch_size"),
        read_threads=settings("resources", "read_threads"),
        read_ahead=settings("resources", "read_ahead_mb"),
        device=settings("resources", "device"),
    message:
        "WorldCover {wildcards.year}: embed {wildcards.shard}"
    shell:
        "python -m scripts.embed_worldcover --units {input.plan:q} --shard {wildcards.shard} --weights {input.weights:q}"
        " --folder {params.folder:q} --output {output:q} --expect-fingerprint {params.fingerprint}"
        " --encode {params.encode} --max-nodata {params.max_nodata} --metadata {params.metadata} --gsd {params.gsd}"
        " --storage {params.dtype} --max-failed-fraction {params.max_failed} --batch-size {params.batch}"
        " --threads {threads} --read-threads {params.read_threads} --read-ahead-mb {params.read_ahead}"
        " --device {params.device} 2> {log:q}"


rule merge_worldcover:
    input:
        plan=ancient(worldcover_plan_of),
        shards=worldcover_shards,
    output:
        f"{WC_DIR}/products/{{year}}/{{digest}}.json",
    log:
        local(f"{LOGS}/merge_worldcover/{{year}}-{{digest}}.log"),
    benchmark:
        local(f"{BENCHMARKS}/merge_worldcover/{{year}}-{{digest}}.tsv")
    conda:
        CONDA
    threads: 1
    resources:
        mem_mb=settings("resources", "merge_mem_mb"),
    params:
        shards=folder_of_shards,
        ledgers=uri(f"{WC_DIR}/shards/{{year}}"),
        product=uri(f"{WC_DIR}/products/{{year}}/{{digest}}"),
        missing="--allow-missing" if config["allow_missing"] else "",
        memory=settings("resources", "merge_mem_mb") // 2,
    message:
        "WorldCover {wildcards.year}: merge its shards"
    shell:
        "python -m scripts.merge --plan {input.plan:q} --shards {params.shards:q} --ledgers {params.ledgers:q}"
        " --product {params.product:q} --record {output:q} --memory-mb {params.memory} {params.missing} 2> {log:q}"
