# What a run takes, and what became of it.


def selected_records(wildcards):
    """The records of the products to search through and to draw."""
    as_workflow_error(RUN.require_checkpoint_digest)
    return as_workflow_error(RUN.required_records)


def picture(name, wildcards):
    """A picture of what the database holds."""
    return RUN.picture(name)


def picture_targets(wildcards):
    """Published files have no ledger: of those alone there is no coverage to draw."""
    of_products = ("coverage.png", "ledger.html") if records_of_index(wildcards) else ()
    return [RUN.picture(name) for name in (RUN.contact_sheet, *of_products)]


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
        plans=[RUN.paths.uri(dataset.plan) for dataset in RUN.datasets.values()],
    message:
        "What there is to do, and what it takes"
    shell:
        shell_line(commands.estimate_command(RUN))
