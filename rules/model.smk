# Checkpoint -> pinned encoder weights.


checkpoint encoder_weights:
    output:
        weights_path(),
    log:
        local(f"{LOGS}/encoder_weights.log"),
    benchmark:
        local(f"{BENCHMARKS}/encoder_weights.tsv")
    conda:
        CONDA
    threads: 1
    resources:
        mem_mb=8000,
    params:
        checkpoint=settings("model", "checkpoint"),
        sha256=settings("model", "sha256") or "",
        precision=settings("model", "precision"),
        untrained=json.dumps(settings("model", "untrained"), sort_keys=True),
    message:
        "Encoder weights from {params.checkpoint}"
    shell:
        "python -m scripts.encoder_weights --checkpoint {params.checkpoint:q} --sha256={params.sha256}"
        " --precision {params.precision} --untrained {params.untrained:q} --output {output:q} 2>&1 | tee {log:q}"
