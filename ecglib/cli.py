"""The command line: `ecglib run PROFILE` makes a profile's book, `ecglib prepare` its images alone."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)

DataOption = Annotated[
    Path | None, typer.Option(envvar="ECGLIB_DATA", help="folder of PTB-XL, or of your own MUSE exports")
]
TableOption = Annotated[
    Path | None, typer.Option(envvar="ECGLIB_TABLE", help="CSV with the labels of the MUSE exports")
]
KeyOption = Annotated[
    Path | None,
    typer.Option(envvar="ECGLIB_KEY", help="key of the pseudonyms [default: one made at first use]"),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="NOTEBOOK.NAME=VALUE, such as 05_finetuning.steps=20")
]


@app.callback()
def study() -> None:
    """HeartBEiT on ECG images: from records to a book, every stage runnable."""


@app.command()
def run(
    profile: Annotated[
        str, typer.Argument(help="smoke, quick, ptbxl-tiny, muse, paper, or the path of a .yaml file")
    ],
    data: DataOption = None,
    table: TableOption = None,
    key: KeyOption = None,
    set_: SetOption = None,
    html: Annotated[Path | None, typer.Option(help="where the pages go [default: runs/PROFILE/html]")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="list each step, its size and hours; run nothing")
    ] = False,
) -> None:
    """Make all that a profile's book needs and has not yet, then build the book.

    What exists already is reused; after a crash or a kill the same command goes on where it was.
    """
    from ecglib.datasets import DataPaths  # torch is not needed to print --help
    from ecglib.run import dry_run as show_plan
    from ecglib.run import run_profile

    paths = DataPaths(data, table, key)
    if dry_run:
        show_plan(profile, paths, set_ or [])
    else:
        run_profile(profile, paths, set_ or [], html)


@app.command()
def prepare(
    data: DataOption = None,
    table: TableOption = None,
    source: Annotated[str, typer.Option(help="muse, ptbxl or embedded")] = "muse",
    profile: Annotated[
        str | None, typer.Option(help="profile whose settings count [default: one that reads the source]")
    ] = None,
    key: KeyOption = None,
    out: Annotated[
        Path | None, typer.Option(envvar="ECGLIB_RUNS", help="where results go [default: runs]")
    ] = None,
    set_: SetOption = None,
) -> None:
    """Check the ECGs and their labels, say what fits and what does not, and draw the images.

    `ecglib run` goes on from there.
    """
    import os

    from ecglib.datasets import DataPaths
    from ecglib.prepare import prepare_images

    if out:
        os.environ["ECGLIB_RUNS"] = str(out)
    prepare_images(source, profile, DataPaths(data, table, key), set_ or [])


def main() -> None:
    """Run the command line; a user's mistake is one line and exit code 2."""
    from ecglib.errors import EcglibError

    try:
        app()
    except EcglibError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
