# NAIP: plan -> embed -> merge, one partition a state and year. The plan tells the shards.

# The conterminous states, which is what NAIP covers.
STATES = (
    "al ar az ca co ct de fl ga ia id il in ks ky la ma md me mi mn mo ms mt nc nd ne nh nj nm nv ny oh ok or pa ri sc sd"
    " tn tx ut va vt wa wi wv wy"
).split()
NAIP = config["naip"]
NAIP_FINGERPRINT = fingerprint_of(
    "naip",
    weights=WEIGHTS_DIGEST or UNPINNED,
    precision=config["model"]["precision"],
    dtype=config["storage"],
    embedding=config["embedding"],
    patches=config["patches"],
    metadata=NAIP["metadata"],
    gsd=NAIP["gsd"],
    max_nodata=NAIP["max_nodata"],
    max_cloud=None,
    lattice=named(get_archive("naip").lattice, NAIP),
)
NAIP_ASKED = asked(
    "naip", "manifest", "archive", "states", "years", "resolutions", "bbox", "scenes_per_shard", "chip_size"
)
NAIP_DATASET = Dataset.planned("naip", NAIP_FINGERPRINT, NAIP_ASKED, merging=["--unique"] if NAIP["unique"] else [])
if NAIP["unique"] and NAIP["lattice"] != "utm":
    raise WorkflowError("config: naip.unique wants naip.lattice utm: elsewhere no two chips lie in one place")
if "naip" in config["datasets"]:
    DATASETS["naip"] = NAIP_DATASET


for state in sorted({*STATES, *NAIP["states"]}):

    rule:
        name:
            f"naip-{state}"
        input:
            partial(plans_of, "naip"),
            partial(targets_of_state, state),
        message:
            "NAIP of a state: every shard and product is there"


# Commands and messages of all jobs are filled in with a copy of the globals: names that nobody asks for cost dry runs.
for name in [name for name in globals() if name.startswith("__naip-")]:
    del globals()[name]


checkpoint plan_naip:
    input:
        ready,
    output:
        names=NAIP_DATASET.names,  # first: the one that is asked for when shards are to be known
        plan=NAIP_DATASET.plans[ALL],
    log:
        kept(f"{LOGS}/plan_naip.log"),
    benchmark:
        kept(f"{BENCHMARKS}/plan_naip.tsv")
    conda:
        CONDA
    threads: MEDIUM.threads
    resources:
        mem_mb=MEDIUM.mem_mb,
    params:
        asked=NAIP_ASKED,
    message:
        "NAIP: which scenes of the manifest, in which shards"
    shell:
        "python -m kiln.archives.naip.plan {params.asked} --output {output.plan:q} --names {output.names:q} 2> {log:q}"


# No benchmark: the log tells time and memory, and thousands of them cost every dry run and store.
rule embed_naip:
    input:
        **weights_of(NAIP_DATASET),
    output:
        f"{NAIP_DATASET.folder}/shards/{{partition}}/{{shard}}.parquet",
    log:
        kept(f"{LOGS}/embed_naip/{{partition}}/{{shard}}.log"),
    conda:
        CONDA
    threads: EMBED.threads
    resources:
        **EMBED.resources,
    params:
        flags=(
            f"--units {plan_uri(NAIP_DATASET)} --shard {{shard}} {folder_flag(NAIP_DATASET)} {parts_flag(NAIP_DATASET)} {ENGINE_FLAGS} --max-nodata {NAIP['max_nodata']} --metadata {NAIP['metadata']} --gsd {NAIP['gsd']}"
            f" --chip-size {NAIP['chip_size']} --lattice {NAIP['lattice']} --lattice-gsd {NAIP['lattice_gsd']}"
            f" --edge {NAIP['edge']} --expect-fingerprint {NAIP_FINGERPRINT[:8]}"
        ),
    message:
        "NAIP {wildcards.partition}: embed {wildcards.shard}"
    shell:
        f"python -m scripts.embed_naip {weights_flag()}"
        " --output {output:q} {params.flags} --threads {threads} 2> {log:q}"


rule merge_naip:
    input:
        shards=partial(shards_of, "naip"),
    output:
        f"{NAIP_DATASET.folder}/products/{{partition}}/{{digest}}.json",
    log:
        kept(f"{LOGS}/merge_naip/{{partition}}-{{digest}}.log"),
    benchmark:
        kept(f"{BENCHMARKS}/merge_naip/{{partition}}-{{digest}}.tsv")
    conda:
        CONDA
    threads: MERGE.threads
    resources:
        mem_mb=MERGE.mem_mb,
    params:
        shards=folder_of_shards,
        ledgers=partial(shards_uri, "naip"),
        product=partial(product_uri, "naip"),
        plan=plan_uri(NAIP_DATASET),
        flags=" ".join([f"--memory-mb {MERGE_MEMORY_MB}", *ALLOW_MISSING, *NAIP_DATASET.merging]),
    message:
        "NAIP {wildcards.partition}: merge its shards"
    shell:
        "python -m kiln.product.merge --plan {params.plan} --partition {wildcards.partition} --shards {params.shards:q}"
        " --ledgers {params.ledgers:q} --product {params.product:q} --record {output:q} {params.flags} 2> {log:q}"
