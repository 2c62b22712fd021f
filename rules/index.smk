# Merged products -> the explorer database.


rule build_index:
    input:
        preflight_checks,
        records=input_function(RUN.indexed_records),
    output:
        f"{RUN.paths.results}/index/{{digest}}.json",
    log:
        LOG(f"{LOGS}/build_index-{{digest}}.log"),
    benchmark:
        LOG(f"{BENCHMARKS}/build_index-{{digest}}.tsv")
    conda:
        CONDA
    threads: MERGE.threads
    resources:
        mem_mb=MERGE.mem_mb,
    params:
        setup=setup,
        products=input_function(RUN.selected_products),
    message:
        "Explorer database from the merged products and published files"
    shell:
        shell_line(commands.index_command(RUN))


rule picture_similar:
    input:
        f"{RUN.paths.results}/index/{{digest}}.json",
    output:
        report(
            f"{RUN.paths.results}/pictures/{{digest}}/{RUN.contact_sheet}",
            category="Explorer",
            labels={"picture": "a chip and its nearest neighbours"},
            caption="../docs/report/similar.rst",
        ),
    log:
        LOG(f"{LOGS}/picture_similar-{{digest}}.log"),
    benchmark:
        LOG(f"{BENCHMARKS}/picture_similar-{{digest}}.tsv")
    conda:
        CONDA
    threads: MEDIUM.threads
    resources:
        mem_mb=MEDIUM.mem_mb,
    params:
        setup=setup,
    message:
        "Contact sheet of a chip and its nearest neighbours"
    shell:
        shell_line(commands.contact_sheet_command(RUN), "> {log:q} 2>&1")
