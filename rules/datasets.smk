# Every archive: plan -> embed -> merge. The plan decides the shards; a partition's shards are merged to one product.
for dataset in RUN.all_datasets.values():
    archive, folder = dataset.archive, dataset.folder
    PLAN = job(archive.plan_threads, 2000)

    checkpoint:
        name:
            f"plan_{archive.name}"
        input:
            preflight_checks,
        output:
            names=dataset.names_file,  # first: the one that is asked for when shards must be known
            plan=dataset.plan,
        log:
            LOG(f"{LOGS}/plan_{archive.name}.log"),
        benchmark:
            LOG(f"{BENCHMARKS}/plan_{archive.name}.tsv")
        priority: 1  # plans before shards: after all plans it is known how much there is to do
        conda:
            CONDA
        threads: PLAN.threads
        resources:
            mem_mb=PLAN.mem_mb,
        params:
            setup=setup,
            flags=rule_flags(commands.plan_flags(dataset)),
        message:
            f"{archive.title}: plan the shards"
        shell:
            "{params.setup}python -m scripts.plan_units {params.flags} --output {output.plan:q} --names {output.names:q}"
            " 2> {log:q}"

    # No benchmark: the log holds time and memory, and thousands of them cost every dry run and store.
    rule:
        name:
            f"embed_{archive.name}"
        input:
            weights=ancient(weights_of(archive.name)),
        output:
            f"{folder}/shards/{{partition}}/{{shard}}.parquet",
        log:
            LOG(f"{LOGS}/embed_{archive.name}/{{partition}}/{{shard}}.log"),
        conda:
            CONDA
        threads: EMBED.threads
        resources:
            **EMBED.resources,
        params:
            setup=setup,
            flags=rule_flags(commands.embed_flags(RUN, dataset)),
        message:
            f"{archive.title} {{wildcards.partition}}: embed {{wildcards.shard}}"
        shell:
            "{params.setup}python -m scripts.embed {params.flags} --weights {input.weights:q} --output {output:q}"
            " --threads {threads} 2> {log:q}"

    rule:
        name:
            f"merge_{archive.name}"
        input:
            shards=partial(shards_of, archive.name),
        output:
            f"{folder}/products/{{partition}}/{{digest}}.json",
        log:
            LOG(f"{LOGS}/merge_{archive.name}/{{partition}}-{{digest}}.log"),
        benchmark:
            LOG(f"{BENCHMARKS}/merge_{archive.name}/{{partition}}-{{digest}}.tsv")
        conda:
            CONDA
        threads: MERGE.threads
        resources:
            mem_mb=MERGE.mem_mb,
        params:
            setup=setup,
            flags=rule_flags(commands.merge_flags(RUN, dataset)),
            shards=lambda wildcards, input: Path(input.shards[0]).parent,
        message:
            f"{archive.title} {{wildcards.partition}}: merge its shards"
        shell:
            "{params.setup}python -m scripts.merge {params.flags} --shards {params.shards:q} --record {output:q} 2> {log:q}"

    rule:
        name:
            archive.name
        input:
            dataset.plan,
            partial(targets_of, archive.name),
        message:
            f"{archive.title}: every shard and product is there"

    rule:
        name:
            f"{archive.name}_shards"
        input:
            partial(shards_alone_of, archive.name),
        message:
            f"{archive.title}: every shard is there"
