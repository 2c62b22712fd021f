# Checkpoint -> pinned encoder weights.
checkpoint encoder_weights:
    input:
        preflight_checks,
    output:
        RUN.weights,
    log:
        LOG(f"{LOGS}/encoder_weights.log"),
    benchmark:
        LOG(f"{BENCHMARKS}/encoder_weights.tsv")
    conda:
        CONDA
    threads: FETCH.threads
    resources:
        mem_mb=FETCH.mem_mb,
    params:
        setup=setup,
    message:
        "Encoder weights"
    shell:
        shell_line(commands.encoder_weights_command(RUN), "2>&1 | tee {log:q}")
