"""The command line: `ecglib run` makes a book, `prepare` and `fetch` bring ECGs, the others weights."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)

fetch = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(fetch, name="fetch", help="Bring public ECGs here.")
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


ResultsOption = Annotated[
    Path | None,
    typer.Option(envvar="ECGLIB_RESULTS", help="another folder of kept predictions than --from-predictions'"),
]


@app.callback()
def study() -> None:
    """HeartBEiT on ECG images: from records to a book, every stage runnable."""


@app.command()
def run(
    profile: Annotated[
        str, typer.Argument(help="smoke, quick, ptbxl-tiny, muse, paper ..., or the path of a .yaml file")
    ],
    data: DataOption = None,
    table: TableOption = None,
    key: KeyOption = None,
    set_: SetOption = None,
    html: Annotated[Path | None, typer.Option(help="where the pages go [default: runs/PROFILE/html]")] = None,
    from_predictions: Annotated[
        bool, typer.Option("--from-predictions", help="make the pages that need only book/results/PROFILE")
    ] = False,
    results: ResultsOption = None,
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

    if from_predictions and not results:
        results = kept_results(profile)
    paths = DataPaths(data, table, key, results)
    if dry_run:
        show_plan(profile, paths, set_ or [])
    else:
        run_profile(profile, paths, set_ or [], html)


@app.command()
def grid(
    profile: Annotated[str, typer.Argument(help="profile whose cells are made")],
    data: DataOption = None,
    table: TableOption = None,
    key: KeyOption = None,
    set_: SetOption = None,
    outcome: Annotated[str | None, typer.Option(help="cells of this outcome alone")] = None,
    only: Annotated[str | None, typer.Option(help="heads or finetuned")] = None,
    hours: Annotated[float | None, typer.Option(help="begin no cell after this time")] = None,
    export: Annotated[
        Path | None, typer.Option(help="keep the results there in the end, such as book/results/PROFILE")
    ] = None,
) -> None:
    """Make the cells of the experiment alone, the telling ones first, and say what is done and what lacks.

    What exists is reused; after a kill the same command goes on where it was.
    """
    from ecglib.datasets import DataPaths
    from ecglib.experiment import run_grid

    run_grid(profile, DataPaths(data, table, key), set_ or [], outcome, only, hours, export)


@app.command()
def reproduce(
    profile: Annotated[str, typer.Argument(help="profile whose kept predictions are put to the test")],
    data: DataOption = None,
    n: Annotated[int, typer.Option("--n", help="cells drawn at random")] = 3,
    seed: Annotated[int, typer.Option(help="of the draw")] = 0,
    results: ResultsOption = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="keep there what is made, so that a killed run goes on [default: deleted at the end]"
        ),
    ] = None,
) -> None:
    """Make some kept cells again from scratch and compare; exit code 1 where one is not the same.

    Drawn from heads and the smallest fine-tuned fraction, one at least from the latter. On the machine that
    made a cell scores must agree to 0.00001, elsewhere the AUROC to 0.005.
    """
    from ecglib.datasets import DataPaths
    from ecglib.experiment import reproduce_cells

    same = reproduce_cells(profile, DataPaths(data), results or kept_results(profile), n, seed, folder)
    raise typer.Exit(0 if same else 1)


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


@fetch.callback()
def _fetch() -> None:
    """Bring public ECGs here; a run that was stopped goes on where it was."""


@fetch.command("ptb-xl")
def fetch_ptb_xl(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="where PTB-XL goes")],
    sampling_rate: Annotated[int, typer.Option(help="100, or 500 for both copies, in Hz")] = 100,
    connections: Annotated[int, typer.Option(help="files fetched at the same time")] = 4,
    base_url: Annotated[str | None, typer.Option(help="another server's folder [default: PhysioNet]")] = None,
) -> None:
    """Fetch PTB-XL; every file's SHA-256 is compared."""
    from ecglib.fetch import PTBXL_URL, FetchSettings, fetch_ptbxl

    settings = FetchSettings(
        base_url=base_url or PTBXL_URL, sampling_rate=sampling_rate, connections=connections
    )
    counts = fetch_ptbxl(directory, settings)
    print(f"{directory}: {counts['fetched']:,} files fetched, {counts['there']:,} were there; all are whole")


@app.command()
def pretrain(
    name: Annotated[str, typer.Argument(help="heartbeit_nano or heartbeit_tiny")],
    data: DataOption = None,
    out: Annotated[
        Path, typer.Option(help="where images, tokens and checkpoints go; best outside the project")
    ] = Path("runs/weights"),
    start: Annotated[
        Path | None, typer.Option(help="published weights of a run whose checkpoint is lost: go on from them")
    ] = None,
) -> None:
    """Make the public weights again, from PTB-XL and generated ECGs; a killed run goes on where it was.

    heartbeit_tiny takes hours on two cores. Under torchrun the images are shared by its processes.
    """
    from ecglib.recipes import make_weights

    make_weights(name, _ptbxl(data), out, start)


@app.command()
def probe(
    name: Annotated[str, typer.Argument(help="public weights, such as heartbeit_tiny")],
    data: DataOption = None,
    out: Annotated[Path, typer.Option(help="where `ecglib pretrain` works")] = Path("runs/weights"),
    weights: Annotated[
        Path | None, typer.Option(help="folder of the weights' folder [default: the package's]")
    ] = None,
) -> None:
    """Ask what frozen features know: linear heads on PTB-XL's fold 9, beside random and ImageNet weights."""
    from ecglib.frozen import probe_weights

    typer.echo(probe_weights(name, _ptbxl(data), out, weights).round(3).to_string(index=False))


@app.command()
def trials(
    data: DataOption = None,
    out: Annotated[Path, typer.Option(help="where `ecglib pretrain` works")] = Path("runs/weights"),
) -> None:
    """Ask why the public weights know no more: short runs that differ in one thing each, then probes.

    Tokens, masks, learning rate, length; an hour or two on two cores. A killed run goes on where it was. What
    comes of it is kept in book/results/trials.json.
    """
    from ecglib.trials import run_trials

    typer.echo(run_trials(_ptbxl(data), out).round(3).to_string(index=False))


@app.command()
def publish(
    name: Annotated[str, typer.Argument(help="heartbeit_nano or heartbeit_tiny")],
    target: Annotated[Path, typer.Argument(help="folder to write, such as ecglib/weights/heartbeit_nano")],
    out: Annotated[Path, typer.Option(help="where `ecglib pretrain` left its work")] = Path("runs/weights"),
) -> None:
    """Write the public files of pretrained weights and their card: encoder, tokenizer, history, README.

    Of a pretraining that is still at work the last checkpoint is taken, and the card says so.
    """
    from ecglib.cards import publish_run

    typer.echo(publish_run(name, out, target))


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="weights of BEiT by ecglib, Microsoft, timm or Hugging Face")
    ],
    target: Annotated[Path, typer.Argument(help="file to write; a folder for huggingface")],
    to: Annotated[str, typer.Option(help="ecglib, timm or huggingface")],
) -> None:
    """Write the weights of a BEiT for another program, and say what was found in them."""
    from ecglib.checkpoints import convert as convert_weights

    typer.echo(convert_weights(source, target, to).report())


def _ptbxl(data: Path | None) -> Path:
    from ecglib.errors import EcglibError

    if data is None:
        raise EcglibError("the public weights need the folder of PTB-XL: name it with --data DIR")
    return data


def kept_results(profile: str) -> Path:
    """Where the predictions of a profile are kept with the book."""
    from ecglib.profiles import KEPT

    return KEPT / Path(profile).stem


def main() -> None:
    """Run the command line; a user's mistake is one line and exit code 2."""
    from ecglib.errors import EcglibError

    try:
        app()
    except EcglibError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
