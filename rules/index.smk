# Merged products -> the explorer database, and pictures to look at.


DATABASE = f"{RUN}/explorer"
PICTURES = f"{RUN}/pictures/{{digest}}"
SIMILAR = f"similar-{identity.digest(config['pictures'])[:8]}.png"


rule build_index:
    input:
        ready,
        records=indexed_records,
    output:
        f"{RUN}/index/{{digest}}.json",
    log:
        kept(f"{LOGS}/build_index-{{digest}}.log"),
    benchmark:
        kept(f"{BENCHMARKS}/build_index-{{digest}}.tsv")
    conda:
        CONDA
    threads: MERGE.threads
    resources:
        mem_mb=MERGE.mem_mb,
    params:
        products=selected_products,
        db=uri(DATABASE),
        records=index_folder,
        select=json.dumps(SELECT, sort_keys=True),
        published=json.dumps(PUBLISHED, sort_keys=True),
    message:
        "Explorer database from the merged products and published files"
    shell:
        "python -m scripts.build_index --records {input.records:q} --products {params.products:q} --db {params.db:q}"
        " --record {output:q} --withdraw {params.records:q} --select {params.select:q}"
        " --published {params.published:q} 2> {log:q}"


rule picture_similar:
    input:
        f"{RUN}/index/{{digest}}.json",
    output:
        report(
            f"{PICTURES}/{SIMILAR}",
            category="Explorer",
            labels={"picture": "a chip and its nearest neighbours"},
            caption="../docs/report/similar.rst",
        ),
    log:
        kept(f"{LOGS}/picture_similar-{{digest}}.log"),
    benchmark:
        kept(f"{BENCHMARKS}/picture_similar-{{digest}}.tsv")
    conda:
        CONDA
    threads: MEDIUM.threads
    resources:
        mem_mb=MEDIUM.mem_mb,
    params:
        db=uri(DATABASE),
        k=settings("pictures", "neighbours"),
        pictures=json.dumps(settings("pictures"), sort_keys=True),
    message:
        "Contact sheet of a chip and its nearest neighbours"
    shell:
        "python -m scripts.picture_similar --db {params.db:q} -k {params.k} --pictures {params.pictures:q}"
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
        kept(f"{LOGS}/coverage-{{digest}}.log"),
    benchmark:
        kept(f"{BENCHMARKS}/coverage-{{digest}}.tsv")
    conda:
        CONDA
    threads: MEDIUM.threads
    resources:
        mem_mb=MEDIUM.mem_mb,
    params:
        products=selected_products,
    message:
        "Coverage map and ledger table"
    shell:
        "python -m kiln.report.coverage --products {params.products:q} --records {input:q} --map {output.map:q}"
        " --ledger {output.ledger:q} 2> {log:q}"


rule summary:
    input:
        records=selected_records,
        index=index_record,
        similar=partial(picture, SIMILAR),
        coverage=partial(picture, "coverage.png"),
        ledger=partial(picture, "ledger.html"),
    log:
        kept(f"{LOGS}/summary.log"),
    localrule: True
    conda:
        CONDA
    threads: SMALL.threads
    resources:
        mem_mb=SMALL.mem_mb,
    params:
        products=selected_products,
        db=uri(DATABASE),
    message:
        "What there is"
    shell:
        "python -m kiln.report.run_summary --records {input.records:q} --products {params.products:q} --index {input.index:q}"
        " --db {params.db:q} --pictures {input.similar:q} {input.coverage:q} {input.ledger:q} 2> {log:q}"


rule plan:
    input:
        every_plan,
    log:
        kept(f"{LOGS}/plan.log"),
    localrule: True
    conda:
        CONDA
    threads: SMALL.threads
    resources:
        mem_mb=SMALL.mem_mb,
    params:
        plans=plan_uris,
        numbers=json.dumps(config["plan"], sort_keys=True),
        dtype=config["storage"],
        embedding=config["embedding"],
        patches=json.dumps(patch_counts(), sort_keys=True),
        dimensions=(
            settings("model", "untrained", "dim") if config["model"]["checkpoint"] == UNTRAINED else 1024
        ),
    message:
        "What there is to do, and what it takes"
    shell:
        "python -m kiln.report.estimate --plans {params.plans:q} --numbers {params.numbers:q} --dimensions {params.dimensions}"
        " --storage {params.dtype} --embedding {params.embedding} --patches {params.patches:q} 2> {log:q}"
