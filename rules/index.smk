# Merged products -> the explorer database, and pictures to look at.


SELECT = {k: v for k, v in settings("index", "select").items() if v is not None}
DATABASE = f"{RUN}/explorer"


def selected_records(wildcards=None):
    """Records of the products that the explorer database takes."""
    datasets, partitions = SELECT.get("datasets"), SELECT.get("partitions")
    return [
        record
        for dataset, years in (("worldcover", WC_SHARDS),)
        for year in years
        for record in worldcover_records(year)
        if (not datasets or dataset in datasets) and (not partitions or year in partitions)
    ]


INDEX_DIGEST = identity.digest([selected_records(), SELECT])[:16]
INDEX_RECORD = f"{RUN}/index/{INDEX_DIGEST}.json"
PICTURES = f"{RUN}/pictures/{INDEX_DIGEST}"


def index_targets(wildcards):
    pinned(None)
    return [INDEX_RECORD] if selected_records() else []


def picture_targets(wildcards):
    pinned(None)
    return (
        [f"{PICTURES}/similar.png", f"{PICTURES}/coverage.png", f"{PICTURES}/ledger.html"] if selected_records() else []
    )


def product_uris(wildcards):
    return [uri(r.removesuffix(".json")) for r in selected_records()]


rule index:
    input:
        selected_records,
    output:
        INDEX_RECORD,
    log:
        local(f"{LOGS}/index-{INDEX_DIGEST}.log"),
    benchmark:
        local(f"{BENCHMARKS}/index-{INDEX_DIGEST}.tsv")
    conda:
        CONDA
    threads: 1
    resources:
        mem_mb=settings("resources", "merge_mem_mb"),
    params:
        products=product_uris,
        db=uri(DATABASE),
        select=json.dumps(SELECT, sort_keys=True),
    message:
        "Explorer database from the merged products"
    shell:
        "python -m scripts.index --records {input:q} --products {params.products:q} --db {params.db:q}"
        " --record {output:q} --select {params.select:q} 2> {log:q}"


rule picture_similar:
    input:
        INDEX_RECORD,
    output:
        report(
            f"{PICTURES}/similar.png",
            category="Explorer",
            labels={"picture": "a chip and its nearest neighbours"},
            caption="../docs/report/similar.rst",
        ),
    log:
        local(f"{LOGS}/picture_similar-{INDEX_DIGEST}.log"),
    benchmark:
        local(f"{BENCHMARKS}/picture_similar-{INDEX_DIGEST}.tsv")
    conda:
        CONDA
    threads: 1
    resources:
        mem_mb=2000,
    params:
        db=uri(DATABASE),
        k=settings("pictures", "neighbours"),
        pictures=json.dumps(settings("pictures"), sort_keys=True),
    message:
        "Contact sheet of a chip and its nearest neighbours"
    shell:
        "python -m scripts.search --db {params.db:q} --example -k {params.k} --pictures {params.pictures:q}"
        " --png {output:q} > {log:q} 2>&1"


rule coverage:
    input:
        selected_records,
    output:
        map=report(
            f"{PICTURES}/coverage.png",
            category="Coverage",
            labels={"picture": "what was embedded"},
            caption="../docs/report/coverage.rst",
        ),
        ledger=report(
            f"{PICTURES}/ledger.html",
            category="Ledger",
            labels={"picture": "what became of every unit"},
            caption="../docs/report/ledger.rst",
        ),
    log:
        local(f"{LOGS}/coverage-{INDEX_DIGEST}.log"),
    benchmark:
        local(f"{BENCHMARKS}/coverage-{INDEX_DIGEST}.tsv")
    conda:
        CONDA
    threads: 1
    resources:
        mem_mb=2000,
    params:
        products=product_uris,
    message:
        "Coverage map and ledger table"
    shell:
        "python -m scripts.coverage --products {params.products:q} --records {input:q} --map {output.map:q}"
        " --ledger {output.ledger:q} 2> {log:q}"


rule summary:
    input:
        records=selected_records,
        index=INDEX_RECORD,
        similar=f"{PICTURES}/similar.png",
        coverage=f"{PICTURES}/coverage.png",
        ledger=f"{PICTURES}/ledger.html",
    log:
        local(f"{LOGS}/summary.log"),
    conda:
        CONDA
    threads: 1
    resources:
        mem_mb=1000,
    params:
        products=product_uris,
        db=uri(DATABASE),
    message:
        "What there is"
    shell:
        "python -m scripts.summary --records {input.records:q} --products {params.products:q} --index {input.index:q}"
        " --db {params.db:q} --pictures {input.similar:q} {input.coverage:q} {input.ledger:q} 2> {log:q}"


rule plan:
    input:
        [worldcover_plan(year) for year in WC_SHARDS],
    log:
        local(f"{LOGS}/plan.log"),
    conda:
        CONDA
    threads: 1
    resources:
        mem_mb=1000,
    params:
        plans=uris([worldcover_plan(year) for year in WC_SHARDS]),
        numbers=json.dumps(config["plan"], sort_keys=True),
        dtype=config["storage"],
        dim=1024 if settings("model", "checkpoint") != identity.UNTRAINED else settings("model", "untrained", "dim"),
        rows=4 if WC["encode"] == "quarters" else 1,
    message:
        "What there is to do, and what it takes"
    shell:
        "python -m scripts.plan --plans {params.plans:q} --numbers {params.numbers:q} --dimensions {params.dim}"
        " --storage {params.dtype} --rows-per-chip {params.rows} 2> {log:q}"
