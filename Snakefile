# The study as a graph of pages. `ecglib run PROFILE` writes the plan that this file reads (which pages, in which
# order, with which parameters and keys) and starts Snakemake; on a cluster, write the plan by
# `ecglib run PROFILE --dry-run` and start Snakemake yourself:
#
#     snakemake --config plan=runs/quick/plan.json --cores all        (or with --executor slurm)
#
# A page is made again when its key changes: the key hashes its settings, data, text and code.
import json
from pathlib import Path

if "plan" not in config:
    raise WorkflowError("name a plan: --config plan=runs/quick/plan.json; `ecglib run quick --dry-run` writes it")

PLAN = json.loads(Path(config["plan"]).read_text())
PAGES = PLAN["pages"]
EXECUTED = PLAN["folder"] + "/executed/{page}.ipynb"
LOG = PLAN["folder"] + "/logs/{page}.ipynb"


wildcard_constraints:
    page="|".join(PAGES),


rule book:
    input:
        [EXECUTED.format(page=page) for page in PAGES],
    output:
        PLAN["folder"] + "/book_built",
    params:
        key=PLAN["book_key"],
        python=PLAN["python"],
        plan=config["plan"],
    shell:
        "{params.python:q} -m ecglib.pages {params.plan:q}"


rule page:
    input:
        lambda wildcards: [EXECUTED.format(page=page) for page in PAGES[wildcards.page]["reads"]],
    output:
        EXECUTED,
    log:
        LOG,  # papermill writes here, so that a failed notebook stays to be read
    params:
        key=lambda wildcards: PAGES[wildcards.page]["key"],
        source=lambda wildcards: PAGES[wildcards.page]["source"],
        arguments=lambda wildcards: PAGES[wildcards.page]["arguments"],
        environment=lambda wildcards: [f"{name}={value}" for name, value in PAGES[wildcards.page]["environment"].items()],
        python=PLAN["python"],
        # Pages that run at the same time must not fight over the cores.
        threads=lambda wildcards: PAGES[wildcards.page]["threads"],
    threads: lambda wildcards: PAGES[wildcards.page]["slots"]
    resources:
        gpu=lambda wildcards: PAGES[wildcards.page]["gpu"],
    shell:
        "env {params.environment:q} OMP_NUM_THREADS={params.threads} {params.python:q} -m papermill {params.source:q} {log:q} {params.arguments:q}"
        " --no-progress-bar --log-level ERROR && mv {log:q} {output:q}"
