# What a run takes, and what became of it.


rule coverage:
    input:
        records=selected_records,
    output:
        map=report(
            f"{RUN.paths.results}/pictures/{{digest}}/coverage.png",
            category="Coverage",
            labels={"picture": "what was embedded"},
            caption="../docs/report/coverage.rst",
        ),
        ledger=report(
            f"{RUN.paths.results}/pictures/{{digest}}/ledger.html",
            category="Ledger",
            labels={"picture": "what became of every unit"},
            caption="../docs/report/ledger.rst",
        ),
    log:
        LOG(f"{LOGS}/coverage-{{digest}}.log"),
    benchmark:
        LOG(f"{BENCHMARKS}/coverage-{{digest}}.tsv")
    conda:
        CONDA
    threads: MEDIUM.threads
    resources:
        mem_mb=MEDIUM.mem_mb,
    params:
        setup=setup,
        products=selected_products,
    message:
        "Coverage map and ledger table"
    shell:
        shell_line(commands.coverage_command())


rule summary:
    input:
        records=selected_records,
        index=lambda wildcards: RUN.index_record(),
        similar=partial(picture, RUN.contact_sheet),
        coverage=partial(picture, "coverage.png"),
        ledger=partial(picture, "ledger.html"),
    log:
        LOG(f"{LOGS}/summary.log"),
    localrule: True
    conda:
        CONDA
    threads: SMALL.threads
    resources:
        mem_mb=SMALL.mem_mb,
    params:
        setup=setup,
        products=selected_products,
    message:
        "What there is"
    shell:
        shell_line(commands.summary_command(RUN))


rule plan:
    input:
        plans_of_all,
    log:
        LOG(f"{LOGS}/plan.log"),
    localrule: True
    conda:
        CONDA
    threads: SMALL.threads
    resources:
        mem_mb=SMALL.mem_mb,
    params:
        setup=setup,
        plans=[RUN.paths.uri(dataset.plan) for dataset in RUN.datasets.values()],
    message:
        "What there is to do, and what it takes"
    shell:
        shell_line(commands.estimate_command(RUN))
