# Kiln: Clay embeddings over whole Earth-observation archives. Start with README.md.
import runpy

from snakemake.utils import min_version

min_version("9.25")
CODE_FOLDER = runpy.run_path(workflow.source_path("rules/code_folder.py"))["code_folder"]
CODE = str(CODE_FOLDER(workflow.current_basedir))  # jobs import `kiln` and `scripts` from there


configfile: f"{CODE}/config/config.yaml"


report: "docs/report/workflow.rst"


include: "rules/common.smk"
include: "rules/inputs.smk"


rule all:  # the first rule, and so the default target of an importing workflow too
    input:
        *PRODUCTS,
        input_function(RUN.index_targets),
        input_function(RUN.pictures),
    message:
        "Everything that the config asks for is there"


include: "rules/model.smk"
include: "rules/datasets.smk"
include: "rules/index.smk"
include: "rules/report.smk"


rule index:
    input:
        *PRODUCTS,
        input_function(RUN.index_targets),
    message:
        "The explorer database is there"


rule embed:
    input:
        input_function(RUN.plans),
        *(partial(shards_alone_of, name) for name in RUN.datasets),
    message:
        "Every shard is there"


onstart:
    from kiln.report.status.command import RunCommand
    from kiln.workflow.snakemake_adapter import check_database, embeds, how_called, remove_default_submission_rate

    remove_default_submission_rate(workflow)
    as_workflow_error(check_database, workflow, RUN.paths.uri(RUN.paths.database))
    if embeds(workflow):
        command = RunCommand(**how_called(workflow), **RUN.status_settings)
        as_workflow_error(command.write, RUN.paths.uri(RUN.paths.results))


onerror:
    print("Finished work is kept. Run the same command again: only what failed is done again.")
    print("If Snakemake reports that the directory is locked after a crash: snakemake --unlock")
