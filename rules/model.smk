# Checkpoint -> pinned encoder weights.


checkpoint encoder_weights:
    input:
        ready,
    output:
        weights_path(),
    log:
        kept(f"{LOGS}/encoder_weights.log"),
    benchmark:
        kept(f"{BENCHMARKS}/encoder_weights.tsv")
    conda:
        CONDA
    threads: FETCH.threads
    resources:
        mem_mb=FETCH.mem_mb,
    params:
        checkpoint=settings("model", "checkpoint"),
        sha256=settings("model", "sha256") or "",
        precision=settings("model", "precision"),
        untrained=json.dumps(settings("model", "untrained"), sort_keys=True),
    message:
        "Encoder weights from {params.checkpoint}"
    shell:
        "python -m kiln.model.checkpoint --checkpoint {params.checkpoint:q} --sha256={params.sha256}"
        " --precision {params.precision} --untrained {params.untrained:q} --output {output:q} 2>&1 | tee {log:q}"
