# Merged products -> the explorer database, and pictures to look at.


FINISHED_WORK = finished_work()  # looked at once: it must not change while jobs run
DATABASE = f"{RUN}/explorer"
INDEX_DIGEST = identity.digest([selected(), SELECT])[:16]
INDEX_RECORD = f"{RUN}/index/{INDEX_DIGEST}.json"
PICTURES = f"{RUN}/pictures/{INDEX_DIGEST}"
SIMILAR = f"{PICTURES}/similar-{identity.digest(config['pictures'])[:8]}.png"


rule build_index:
    input:
        selected_records,
    output:
        INDEX_RECORD,
    log:
        local(f"{LOGS}/build_index-{INDEX_DIGEST}.log"),
    benchmark:
        local(f"{BENCHMARKS}/build_index-{INDEX_DIGEST}.tsv")
    conda:
        CONDA
    threads: 1
    resources:
        mem_mb=settings("resources", "merge_mem_mb"),
    params:
        products=selected_products,
        db=uri(DATABASE),
        records=index_folder,
        select=json.dumps(SELECT, sort_keys=True),
    message:
        "Explorer database from the merged products"
    shell:
        "python -m scripts.index --records {input:q} --products {params.products:q} --db {params.db:q}"
        " --record {output:q} --withdraw {params.records:q} --select {params.select:q} 2> {log:q}"


rule picture_similar:
    input:
        INDEX_RECORD,
    output:
        report(
            SIMILAR,
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
        products=selected_products,
    message:
        "Coverage map and ledger table"
    shell:
        "python -m scripts.coverage --products {params.products:q} --records {input:q} --map {output.map:q}"
        " --ledger {output.ledger:q} 2> {log:q}"


rule summary:
    input:
        records=selected_records,
        index=INDEX_RECORD,
        similar=SIMILAR,
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
        products=selected_products,
        db=uri(DATABASE),
    message:
        "What there is"
    shell:
        "python -m scripts.summary --records {input.records:q} --products {params.products:q} --index {input.index:q}"
        " --db {params.db:q} --pictures {input.similar:q} {input.coverage:q} {input.ledger:q} 2> {log:q}"


rule plan:
    input:
        every_plan,
    log:
        local(f"{LOGS}/plan.log"),
    conda:
        CONDA
    threads: 1
    resources:
        mem_mb=1000,
    params:
        plans=plan_uris,
        numbers=json.dumps(config["plan"], sort_keys=True),
        dtype=config["storage"],
        dimensions=(
            settings("model", "untrained", "dim") if config["model"]["checkpoint"] == identity.UNTRAINED else 1024
        ),
    message:
        "What there is to do, and what it takes"
    shell:
        "python -m scripts.plan --plans {params.plans:q} --numbers {params.numbers:q} --dimensions {params.dimensions}"
        " --storage {params.dtype} 2> {log:q}"
