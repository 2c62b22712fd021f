# Kiln: Clay embeddings over whole Earth-observation archives. Start with README.md.
from snakemake.utils import min_version

min_version("9.25")


include: "rules/code.smk"


configfile: f"{CODE}/config/config.yaml"


include: "rules/common.smk"
include: "rules/inputs.smk"
include: "rules/model.smk"
include: "rules/datasets.smk"
include: "rules/index.smk"
include: "rules/report.smk"


rule all:
    default_target: True
    input:
        plans_of_all,
        *(partial(targets_of, name) for name in RUN.datasets),
        index_targets,
        picture_targets,
    message:
        "Everything that the config asks for is there"


rule index:
    input:
        plans_of_all,
        *(partial(targets_of, name) for name in RUN.datasets),
        index_targets,
    message:
        "The explorer database is there"


onstart:
    remove_default_submission_rate(workflow)


onerror:
    print("Finished work is kept. Run the same command again: only what failed is done again.")
    print("If Snakemake reports that the directory is locked after a crash: snakemake --unlock")
