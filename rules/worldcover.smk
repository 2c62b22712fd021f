# ESA WorldCover: plan -> embed -> merge, one partition a year.


WC = config["worldcover"]
WC_LATTICE = named(lattices.Lattice, WC["chip_size"], WC["pixels_per_degree"])
WC_COLUMNS = named(lattices.region_columns, WC_LATTICE, WC["region"]) if WC["years"] else []
WC_FINGERPRINT = fingerprint_of(
    "worldcover",
    weights=WEIGHTS_DIGEST or UNPINNED,
    precision=config["model"]["precision"],
    dtype=config["storage"],
    embedding=config["embedding"],
    patches=config["patches"],
    metadata=WC["metadata"],
    gsd=WC["gsd"],
    max_nodata=WC["max_nodata"],
    max_cloud=None,
    lattice=named(get_archive("worldcover").lattice, WC),
)
WORLDCOVER = Dataset.of(
    "worldcover",
    WC_FINGERPRINT,
    WC["archive"],
    {
        str(year): [s.name for s in lattices.shards(WC_LATTICE, year, WC_COLUMNS, WC["columns_per_shard"])]
        for year in WC["years"]
    },
)
if "worldcover" in config["datasets"] and WC["years"]:
    DATASETS["worldcover"] = WORLDCOVER


checkpoint plan_worldcover:
    input:
        ready,
    output:
        f"{WORLDCOVER.folder}/plan-{{partition}}-{{digest}}.jsonl",
    log:
        kept(f"{LOGS}/plan_worldcover/{{partition}}-{{digest}}.log"),
    benchmark:
        kept(f"{BENCHMARKS}/plan_worldcover/{{partition}}-{{digest}}.tsv")
    conda:
        CONDA
    threads: SMALL.threads
    resources:
        mem_mb=SMALL.mem_mb,
    params:
        archive=WC["archive"],
        region=WC["region"] if isinstance(WC["region"], str) else ",".join(map(str, WC["region"])),
        chip_size=WC["chip_size"],
        ppd=WC["pixels_per_degree"],
        per_shard=WC["columns_per_shard"],
        encode=WC["encode"],
    message:
        "WorldCover {wildcards.partition}: which tiles exist"
    shell:
        "python -m kiln.archives.worldcover.plan --archive {params.archive:q} --year {wildcards.partition}"
        " --region={params.region} --chip-size {params.chip_size} --pixels-per-degree {params.ppd}"
        " --columns-per-shard {params.per_shard} --encode {params.encode} --output {output:q} 2> {log:q}"


# No benchmark: the log tells time and memory, and thousands of them cost every dry run and store.
rule embed_worldcover:
    input:
        **weights_of(WORLDCOVER),
        plan=ancient(partial(plan_of, "worldcover")),
    output:
        f"{WORLDCOVER.folder}/shards/{{partition}}/{{shard}}.parquet",
    log:
        kept(f"{LOGS}/embed_worldcover/{{partition}}/{{shard}}.log"),
    conda:
        CONDA
    threads: EMBED.threads
    resources:
        **EMBED.resources,
    params:
        flags=(
            f"{folder_flag(WORLDCOVER)} {ENGINE_FLAGS} --max-nodata {WC['max_nodata']} --metadata {WC['metadata']} --gsd {WC['gsd']}"
            f" --expect-fingerprint {WC_FINGERPRINT[:8]}"
        ),
    message:
        "WorldCover {wildcards.partition}: embed {wildcards.shard}"
    shell:
        f"python -m scripts.embed_worldcover {weights_flag()} --units {{input.plan:q}} --shard {{wildcards.shard}}"
        " --output {output:q} {params.flags} --threads {threads} 2> {log:q}"


rule merge_worldcover:
    input:
        plan=ancient(partial(plan_of, "worldcover")),
        shards=partial(shards_of, "worldcover"),
    output:
        f"{WORLDCOVER.folder}/products/{{partition}}/{{digest}}.json",
    log:
        kept(f"{LOGS}/merge_worldcover/{{partition}}-{{digest}}.log"),
    benchmark:
        kept(f"{BENCHMARKS}/merge_worldcover/{{partition}}-{{digest}}.tsv")
    conda:
        CONDA
    threads: MERGE.threads
    resources:
        mem_mb=MERGE.mem_mb,
    params:
        shards=folder_of_shards,
        ledgers=partial(shards_uri, "worldcover"),
        product=partial(product_uri, "worldcover"),
        flags=" ".join([f"--memory-mb {MERGE_MEMORY_MB}", *ALLOW_MISSING]),
    message:
        "WorldCover {wildcards.partition}: merge its shards"
    shell:
        "python -m kiln.product.merge --plan {input.plan:q} --shards {params.shards:q} --ledgers {params.ledgers:q}"
        " --product {params.product:q} --record {output:q} {params.flags} 2> {log:q}"
