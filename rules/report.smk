# What a run takes, and what became of it.


rule coverage:
    input:
        records=input_function(RUN.required_records),
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
            labels={"page": "what became of every unit"},
            caption="../docs/report/ledger.rst",
        ),
        run=report(
            f"{RUN.paths.results}/pictures/{{digest}}/run.html",
            category="Run",
            labels={"page": "products, and what they took"},
            caption="../docs/report/run.rst",
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
        products=input_function(RUN.selected_products),
    message:
        "Coverage map, ledger, costs and catalog"
    shell:
        shell_line(commands.coverage_command(RUN))


rule summary:
    input:
        records=input_function(RUN.required_records),
        index=input_function(RUN.index_record),
        pictures=input_function(RUN.pictures),
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
        products=input_function(RUN.selected_products),
    message:
        "What there is"
    shell:
        shell_line(commands.summary_command(RUN))


rule plan:
    input:
        input_function(RUN.plans),
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
        shell_line(commands.estimate_command(RUN, jobs_run_here(workflow)))


rule delete_leftovers:
    log:
        LOG(f"{LOGS}/delete_leftovers.log"),
    localrule: True
    conda:
        CONDA
    threads: SMALL.threads
    resources:
        mem_mb=SMALL.mem_mb,
    params:
        setup=setup,
    message:
        "Delete the files that belong to nothing"
    shell:
        shell_line(commands.delete_leftovers_command(RUN))
