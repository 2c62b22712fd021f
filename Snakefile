# Kiln: Clay embeddings over whole Earth-observation archives. Start with README.md.
from snakemake.utils import min_version, validate

min_version("9.25")


configfile: Path(workflow.basedir) / "config" / "config.yaml"


validate(config, Path(workflow.basedir) / "config" / "schemas" / "config.schema.yaml", set_default=False)


include: "rules/common.smk"
include: "rules/jobs.smk"
include: "rules/targets.smk"
include: "rules/model.smk"
include: "rules/worldcover.smk"
include: "rules/naip.smk"
include: "rules/sentinel2.smk"
include: "rules/index.smk"


rule all:
    default_target: True
    input:
        *every_dataset(),
        index_targets,
        picture_targets,
    message:
        "Everything that the config asks for is there"


rule worldcover:
    input:
        partial(targets_of, "worldcover"),
    message:
        "WorldCover: every shard and product is there"


rule naip:
    input:
        partial(plans_of, "naip"),
        partial(targets_of, "naip"),
    message:
        "NAIP: every shard and product is there"


rule sentinel2:
    input:
        partial(plans_of, "sentinel2"),
        partial(targets_of, "sentinel2"),
    message:
        "Sentinel-2: every shard and product is there"


rule index:
    input:
        *every_dataset(),
        index_targets,
    message:
        "The explorer database is there"


onstart:
    look_when_something_happens()


onerror:
    print("Finished work is kept: run the same command again and only what failed is done again.")
    print("If Snakemake says that the directory is locked after a crash: snakemake --unlock")
