# Sentinel-2 L2A: plan -> embed -> merge, one partition an MGRS grid zone and month. The plan tells the shards.
from kiln.archives.sentinel2 import layout as sentinel2_layout

S2 = config["sentinel2"]
S2_FINGERPRINT = fingerprint_of(
    "sentinel2",
    weights=WEIGHTS_DIGEST or UNPINNED,
    precision=config["model"]["precision"],
    dtype=config["storage"],
    embedding=config["embedding"],
    patches=config["patches"],
    metadata=S2["metadata"],
    gsd=S2["gsd"],
    max_nodata=S2["max_nodata"],
    max_cloud=S2["max_cloud"],
    lattice=named(sentinel2_layout.chip_layout, S2["chip_size"], S2["contradicted"]),
)
S2_ASKED = asked(
    "sentinel2",
    *("inventory", "inventory_root", "search", "collection", "items", "archive"),
    *("area", "bbox", "dates", "years", "months", "tiles", "max_cloud_cover", "items_per_shard", "chip_size"),
)
S2_DATASET = Dataset.planned("sentinel2", S2_FINGERPRINT, S2_ASKED)
S2_REWRITE = " ".join(f"--rewrite {quoted(pair)}" for pair in sentinel2_layout.rewrites(S2["archive"], S2["rewrite"]))
if "sentinel2" in config["datasets"]:
    DATASETS["sentinel2"] = S2_DATASET
    named(sentinel2_layout.check_way, S2)


checkpoint plan_sentinel2:
    input:
        ready,
    output:
        names=S2_DATASET.names,  # first: the one that is asked for when shards are to be known
        plan=S2_DATASET.plans[ALL],
    log:
        kept(f"{LOGS}/plan_sentinel2.log"),
    benchmark:
        kept(f"{BENCHMARKS}/plan_sentinel2.tsv")
    conda:
        CONDA
    threads: PLAN.threads
    resources:
        mem_mb=PLAN.mem_mb,
    params:
        asked=S2_ASKED,
    message:
        "Sentinel-2: which items, in which shards"
    shell:
        "python -m kiln.archives.sentinel2.plan {params.asked} --output {output.plan:q} --names {output.names:q} 2> {log:q}"


# No benchmark: the log tells time and memory, and thousands of them cost every dry run and store.
rule embed_sentinel2:
    input:
        **weights_of(S2_DATASET),
    output:
        f"{S2_DATASET.folder}/shards/{{partition}}/{{shard}}.parquet",
    log:
        kept(f"{LOGS}/embed_sentinel2/{{partition}}/{{shard}}.log"),
    conda:
        CONDA
    threads: EMBED.threads
    resources:
        **EMBED.resources,
    params:
        flags=(
            f"--units {plan_uri(S2_DATASET)} --shard {{shard}} {folder_flag(S2_DATASET)} {parts_flag(S2_DATASET)} {ENGINE_FLAGS}"
            f" --max-nodata {S2['max_nodata']} --max-cloud {S2['max_cloud']} --contradicted {S2['contradicted']}"
            f" --metadata {S2['metadata']} --gsd {S2['gsd']} --chip-size {S2['chip_size']}"
            f" {S2_REWRITE} --expect-fingerprint {S2_FINGERPRINT[:8]}"
        ),
    message:
        "Sentinel-2 {wildcards.partition}: embed {wildcards.shard}"
    shell:
        f"python -m scripts.embed_sentinel2 {weights_flag()}"
        " --output {output:q} {params.flags} --threads {threads} 2> {log:q}"


rule merge_sentinel2:
    input:
        shards=partial(shards_of, "sentinel2"),
    output:
        f"{S2_DATASET.folder}/products/{{partition}}/{{digest}}.json",
    log:
        kept(f"{LOGS}/merge_sentinel2/{{partition}}-{{digest}}.log"),
    benchmark:
        kept(f"{BENCHMARKS}/merge_sentinel2/{{partition}}-{{digest}}.tsv")
    conda:
        CONDA
    threads: MERGE.threads
    resources:
        mem_mb=MERGE.mem_mb,
    params:
        shards=folder_of_shards,
        ledgers=partial(shards_uri, "sentinel2"),
        product=partial(product_uri, "sentinel2"),
        plan=plan_uri(S2_DATASET),
        flags=" ".join([f"--memory-mb {MERGE_MEMORY_MB}", *ALLOW_MISSING]),
    message:
        "Sentinel-2 {wildcards.partition}: merge its shards"
    shell:
        "python -m kiln.product.merge --plan {params.plan} --partition {wildcards.partition} --shards {params.shards:q}"
        " --ledgers {params.ledgers:q} --product {params.product:q} --record {output:q} {params.flags} 2> {log:q}"
