"""Public weights on a page: what they are, whom they have seen, and what their frozen features know."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ecglib.checkpoints import ENCODER
from ecglib.errors import EcglibError
from ecglib.provenance import read_made
from ecglib.published import LAYERS, PROBES, PROBES_MADE, Pretrained, training_hours
from ecglib.style import Table, difference_text, model_name, outcome_name
from ecglib.tokenizer import FILE_NAME

TARGET = 0.05  # AUROC over random weights from few labels that the public weights were to reach
PLATEAU = 1.1  # times as many tokens right as by the commonest alone: below it nothing of an ECG was learnt


def facts(model: Pretrained) -> Table:
    """What the files are and what made them."""
    made, history = model.metadata, model.history()
    settings = made["settings"]
    n_parameters = sum(parameter.numel() for parameter in model.model.parameters())
    sizes = [f"{(model.folder / name).stat().st_size / 1e6:.1f} MB" for name in (ENCODER, FILE_NAME)]
    rows = {
        "network": f"{settings['size']}, {n_parameters:,} parameters with the head for tokens",
        "tokens": f"{made['vocab_size']} codes, {model.tokenizer.metadata['settings']['kind']}",
        "images seen": f"{len(history) * settings['batch_size']:,} in {len(history):,} steps",
        "planned": f"{settings['steps'] * settings['batch_size']:,} images",
        "training": f"{training_hours(history, settings):.1f} hours",
        "made": f"{made.get('made', 'unknown')}, commit {made['commit'][:12]}, images {made['data_hash']}",
        "files": f"encoder {sizes[0]}, tokenizer {sizes[1]}",
    }
    return Table(pd.Series(rows, name="").to_frame())


def seen(model: Pretrained) -> Table:
    """Whom pretraining has seen, by source, and how many of those who must stay unseen are among them."""
    rows = model.metadata["audit"]
    columns = {
        "ECGs": [f"{row['records']:,}" for row in rows.values()],
        "patients": [f"{row['patients']:,}" for row in rows.values()],
        "ECGs of folds 9 and 10": [f"{row['records_of_folds_9_and_10']:,}" for row in rows.values()],
        "patients of folds 9 and 10": [f"{row['patients_of_folds_9_and_10']:,}" for row in rows.values()],
        "seen of what `seed42` tests": [f"{100 * row['seen_of_seed42_test']:.0f} %" for row in rows.values()],
    }
    return Table(pd.DataFrame(columns, pd.Index(list(rows), name="source")))


def probes(model: Pretrained, name: str = PROBES) -> pd.DataFrame:
    """A table of `frozen.probe_weights`: PROBES or LAYERS. EcglibError where it is not beside the weights."""
    path = model.folder / name
    if not path.is_file():
        raise EcglibError(f"{path} is missing: run `{_command(model)}`")
    return pd.read_parquet(path)


def probe_table(found: pd.DataFrame) -> Table:
    """AUROC of linear heads with intervals, and the difference to random weights."""
    rows = found.to_dict("records")
    columns = {
        "AUROC": list(map(_auroc, rows)),
        "SD of draws": [f"{row['sd']:.3f}" if row["draws"] > 1 else "" for row in rows],
        "minus random weights": ["" if row["model"] == "random" else _difference(row) for row in rows],
    }
    index = pd.MultiIndex.from_tuples(
        [
            (
                outcome_name(row["outcome"]),
                f"{row['n_labels']:,.0f}" + (f", {row['draws']} draws" if row["draws"] > 1 else ""),
                model_name(row["model"]),
            )
            for row in rows
        ],
        names=["outcome", "training ECGs", "network"],
    )
    return Table(pd.DataFrame(columns, index))


def layer_sentence(model: Pretrained, layers: pd.DataFrame) -> str:
    """Which layer of each network knows most, beside its last one."""

    def said(name: str) -> str:
        rows: Any = layers.loc[layers.model == name]
        best, end = rows.loc[rows.auroc.idxmax()], rows.auroc.iloc[-1]
        return f"{model_name(name)}: most after block {best.layer} ({best.auroc:.3f}), {end:.3f} at the end"

    return f"{'; '.join(map(said, dict.fromkeys(layers.model)))}. {_made(model, LAYERS)}"


def _made(model: Pretrained, name: str) -> str:
    return _made_by(read_made(model.folder / PROBES_MADE, (name,), f"`{_command(model)}`")[name])


def _made_by(made: Mapping[str, Any]) -> str:
    return f"Made at commit `{made['commit'][:12]}` on {made['machine']['processor']}."


def _command(model: Pretrained) -> str:
    return f"ecglib probe {model.name} --data PTBXL_DIR"


def trial_table(made: Mapping[str, Any]) -> Table:
    """The short runs of `trials.run_trials`: the end of each course and what its features know."""
    rows = made["rows"]
    columns = {
        "images seen": [f"{row['images']:,}" for row in rows],
        "loss (nats)": [f"{row['loss']:.2f}" if "loss" in row else "" for row in rows],
        "named right, of which the commonest": [
            f"{100 * row['accuracy']:.1f} %, {100 * row['commonest']:.1f} %" if "loss" in row else ""
            for row in rows
        ],
        "AUROC": list(map(_auroc, rows)),
        "SD of draws": [f"{row['sd']:.3f}" for row in rows],
        "minus random weights": ["" if row["trial"] == "random" else _difference(row) for row in rows],
    }
    return Table(pd.DataFrame(columns, pd.Index([row["differs"] or "first run" for row in rows], name="run")))


def trial_sentence(made: Mapping[str, Any]) -> str:
    """Which of the short runs knows most, and what each change made of the first run."""
    rows = {row["trial"]: row for row in made["rows"]}
    first, others = rows["trial_first"], [rows[n] for n in rows if n not in ("random", "trial_first")]
    changes = "; ".join(f"{row['differs']} {row['auroc'] - first['auroc']:+.3f}" for row in others)
    best = max([first, *others], key=lambda row: row["auroc"])
    reached = "reaches" if best["difference"] >= TARGET else "does not reach"
    flat = [row["differs"] or "first run" for row in [first, *others] if _on_plateau(row)]
    stuck = (
        f"{len(flat)} of {len(rows) - 1} ({'; '.join(flat)}) ended where the loss first stays flat: they "
        "name the commonest token nearly every time, and have not learnt yet what an ECG looks like. "
    )
    return (
        f"Against the first run ({first['auroc']:.3f}): {changes}. The best of them, {_difference(best)} to "
        f"random weights, **{reached}** the +{TARGET:.2f} that was aimed at. {stuck if flat else ''}"
        f"{first['draws']} draws of {first['n_labels']:.0f} labels, {first['n']:,} ECGs of fold 9, "
        f"{first['n_positive']:,} with infarction; one seed each. {_made_by(made)}"
    )


def _on_plateau(row: Mapping[str, Any]) -> bool:
    """Whether a course ended naming hidden patches hardly better than by the commonest token alone."""
    return row["accuracy"] < PLATEAU * row["commonest"]


def _auroc(row: Mapping[str, Any]) -> str:
    return f"{row['auroc']:.3f} ({row['low']:.3f}-{row['high']:.3f})"


def _difference(row: Mapping[str, Any]) -> str:
    return difference_text(row["difference"], row["difference_low"], row["difference_high"])


def probe_sentence(model: Pretrained, found: pd.DataFrame) -> str:
    """How far pretraining lifts frozen features over random weights, any infarction, with few labels."""
    few = found.loc[(found.outcome == "mi_any") & (found.fraction < 1) & (found.model == "heartbeit")]
    row: Any = few.to_dict("records")[0]
    said = "above" if row["difference_low"] > 0 else "below" if row["difference_high"] < 0 else "level with"
    aim = "reached" if row["difference"] >= TARGET else "missed"
    return (
        f"With {row['n_labels']:.0f} labels of any infarction the features of `{model.name}` are **{said}** "
        f"those of random weights: {_difference(row)} AUROC on the {row['n']:,} ECGs of fold 9 "
        f"({row['n_positive']:,} with infarction). The aim of +{TARGET:.2f} was **{aim}**. "
        f"{_made(model, PROBES)}"
    )
