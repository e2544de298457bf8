"""Tables of differences: HeartBEiT against each other model, all weights against a head, fewer labels."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ecglib.claims import (
    EQUALITY_MARGIN,
    NOT_REPRODUCED,
    NOT_RUN,
    NOT_TESTABLE,
    REPRODUCED,
    not_worse,
    percent_of_other,
)
from ecglib.comparisons import holm, of_first_run
from ecglib.grid import Cell
from ecglib.score_tables import (
    NOT_ESTIMABLE,
    count_columns,
    count_text,
    in_order,
    in_percent,
    interval_text,
    mean_text,
)
from ecglib.style import (
    KIND_NAMES,
    METRIC_NAMES,
    MODEL_NAMES,
    NO_ROWS,
    PART_NAMES,
    Table,
    listed,
    model_name,
    number_text,
    outcome_name,
)

AS_GOOD = f"as good, within {EQUALITY_MARGIN:g} %"
AS_GOOD_WORDS = {REPRODUCED: "yes", NOT_REPRODUCED: "no", NOT_TESTABLE: "open"}


def difference_table(
    differences: pd.DataFrame, splits: Mapping[str, str], *, metric: str = "auroc", kind: str = "finetuned"
) -> Table:
    """HeartBEiT's score minus each other model's at the same fraction; of AUROC with DeLong's p, and Holm's.

    Holm's family is what stands in the table. Of several runs the first draw and seed is tested; the mean,
    standard deviation, range and number of all stand beside it. `splits` is `study.split_names`.
    """
    first = _with_same_labels(differences, metric, kind)
    tests = {}
    if metric == "auroc":
        adjusted = f"p, Holm, of {first.p.notna().sum()}"
        tests = {"p": map(_p_text, first.p), adjusted: map(_p_text, holm(first.p.to_numpy(float)))}
    columns = {
        **_place_columns(first, splits),
        "labels (%)": in_percent(first.fraction),
        "against": in_order(first.model, model_name, MODEL_NAMES),
        f"{METRIC_NAMES[metric]}, difference": _difference_texts(first),
        **{name: list(texts) for name, texts in tests.items()},
    }
    return _with_runs(first, columns, ["outcome", "split", "part", "labels (%)", "against"])


def lead_sentence(
    differences: pd.DataFrame, splits: Mapping[str, str], *, metric: str = "auroc", kind: str = "finetuned"
) -> str:
    """Of one outcome, which models HeartBEiT is ahead of with the same labels: the interval leaves out 0.

    Of several runs the first, as in `difference_table`; a line for each split and part.
    """
    first = _with_same_labels(differences, metric, kind)
    lines = []
    for where, rows in _places(first, splits):
        readings: dict[str, list[str]] = {}
        for fraction, of_fraction in rows.groupby("fraction"):
            readings.setdefault(_standing(of_fraction), []).append(f"{100 * fraction:g}")
        told = [f"with {listed(of)} % of the labels {standing}" for standing, of in readings.items()]
        lines.append(f"**Seen here** ({where}; {METRIC_NAMES[metric]}): HeartBEiT is {'; '.join(told)}.")
    return "\n\n".join(lines) or NO_ROWS


def _places(first: pd.DataFrame, splits: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """The name of each split and part, and what is known there."""
    for (split, part), rows in first.loc[first.value.notna()].groupby(["split", "part"], sort=False):
        yield f"{PART_NAMES[part]}, {splits[split]}", rows


def _by_interval(rows: pd.DataFrame, above: str, below: str, neither: str) -> dict[str, Any]:
    """The rows whose interval lies above 0, below 0 and neither, under these words; none that is empty."""
    words = np.select([rows.low > 0, rows.high < 0], [above, below], neither)
    groups = {word: rows.loc[words == word] for word in (above, below, neither)}
    return {word: group for word, group in groups.items() if len(group)}


def _standing(rows: pd.DataFrame) -> str:
    """Whom HeartBEiT is ahead of, behind, and not told apart from."""
    groups = _by_interval(rows, "ahead of", "behind", "not told apart from")
    return ", ".join(f"{word} {listed(map(model_name, of.model))}" for word, of in groups.items())


def tuning_table(gains: pd.DataFrame, splits: Mapping[str, str]) -> Table:
    """Each fine-tuned model's AUROC minus that of a head on its frozen features; as in `difference_table`."""
    return Table(difference_table(gains, splits).rename_axis(index={"against": "model"}))


def tuning_sentence(gains: pd.DataFrame, splits: Mapping[str, str]) -> str:
    """For which models training all weights is better than a head on frozen features, and for which worse.

    Of one outcome, by the interval of the first run's difference in AUROC; a line for each split and part.
    """
    first = _first_runs(gains.loc[gains.metric == "auroc"])
    lines = []
    for where, rows in _places(first, splits):
        groups = _by_interval(rows, "better", "worse", "not told apart")
        told = [f"{word} for {_with_fractions(of)}" for word, of in groups.items()]
        lines.append(f"**Seen here** ({where}), all weights against a head: {'; '.join(told)}.")
    return "\n\n".join(lines) or NO_ROWS


def _with_fractions(rows: pd.DataFrame) -> str:
    """The models, each with its shares of the labels: `HeartBEiT (10 and 100 %)`."""
    names = []
    for model, fractions in rows.groupby("model", sort=False).fraction:
        percents = listed(f"{100 * fraction:g}" for fraction in sorted(fractions))
        names.append(f"{model_name(model)} ({percents} %)")
    return listed(names)


def fewer_labels_table(differences: pd.DataFrame, splits: Mapping[str, str]) -> Table:
    """HeartBEiT with few labels minus each other model with more, and whether it is as good.

    The rule is `claims.not_worse`, as `fewer_labels_sentence` states it. Of several runs the first, as in
    `difference_table`.
    """
    first = _first_runs(differences.loc[differences.fraction != differences.reference_fraction])
    percent = [percent_of_other(row) for row in first.to_dict("records")]
    columns = {
        **_place_columns(first, splits),
        "training": in_order(first.kind, KIND_NAMES.get, KIND_NAMES),
        "metric": in_order(first.metric, METRIC_NAMES.get, METRIC_NAMES),
        "labels (%)": [
            f"{100 * ours:g} against {100 * theirs:g}"
            for ours, theirs in zip(first.fraction, first.reference_fraction, strict=True)
        ],
        "against": in_order(first.model, model_name, MODEL_NAMES),
        "difference": _difference_texts(first),
        AS_GOOD: [
            "-" if np.isnan(value) else AS_GOOD_WORDS[not_worse(low, high)[0]] for value, low, high in percent
        ],
    }
    return _with_runs(first, columns, ["outcome", "split", "part", "training", "metric", "against"])


def fewer_labels_sentence(differences: pd.DataFrame, planned: Sequence[Cell]) -> str:
    """The rule of `fewer_labels_table`, and of which planned outcomes and trainings no such pair was run."""
    pairs = differences.loc[differences.fraction != differences.reference_fraction]
    rows = pairs.loc[pairs.value.notna()]
    known = set(zip(rows.outcome, rows.kind, strict=True))
    asked = dict.fromkeys((cell.outcome, cell.kind) for cell in planned)
    lacking = [f"{outcome_name(outcome)}, {KIND_NAMES[kind]}" for outcome, kind in asked.keys() - known]
    rule = (
        f"As good (*yes*): all of the interval lies above -{EQUALITY_MARGIN:g} % of the other model's score. "
        "Not as good (*no*): all of it lies below 0. Else *open*."
    )
    return rule + (f" **Not run yet, or not estimable**: {'; '.join(sorted(lacking))}." if lacking else "")


def _with_same_labels(differences: pd.DataFrame, metric: str, kind: str) -> pd.DataFrame:
    """`_first_runs` of one metric and kind, both models with the same share of the labels."""
    chosen = differences.loc[(differences.metric == metric) & (differences.kind == kind)]
    return _first_runs(chosen.loc[chosen.fraction == chosen.reference_fraction])


def _first_runs(differences: pd.DataFrame) -> pd.DataFrame:
    """FIRST_RUN of each comparison, without numbers where it lacks, and what all runs say (`all runs`).

    Outcomes in the order in which they come.
    """
    keys = ["outcome", "kind", "split", "part", "metric", "fraction", "reference_fraction", "model"]
    rows = differences.loc[differences.metric.notna()].sort_values(by=keys)
    sizes = ["n", "n_positive"]
    texts = [_runs_text(runs) for _, runs in rows.groupby(keys)]
    compared = rows.drop_duplicates(keys).loc[:, [*keys, *sizes]].assign(**{"all runs": texts})
    first = rows.loc[of_first_run(rows)].drop(columns=sizes)
    found = compared.merge(first, how="left", on=keys).fillna({"reason": NOT_RUN})
    order = list(dict.fromkeys(differences.outcome))
    return found.sort_values(by="outcome", key=lambda names: names.map(order.index), kind="stable")


def _place_columns(first: pd.DataFrame, splits: Mapping[str, str]) -> dict[str, Any]:
    """What was scored, on which ECGs."""
    return {
        "outcome": in_order(first.outcome, outcome_name, dict.fromkeys(first.outcome)),
        "split": first.split.map(splits),
        "part": in_order(first.part, PART_NAMES.get, PART_NAMES),
        **count_columns(first),
    }


def _difference_texts(first: pd.DataFrame) -> list[str]:
    """Each difference with its interval, and again in percent of the other model's score; or what lacks."""
    return [
        f"{interval_text(row['value'], row['low'], row['high'], digits=3)}; "
        f"{interval_text(*percent_of_other(row), digits=1)} %"
        if np.isfinite(row["value"])
        else f"{NOT_ESTIMABLE} ({row['reason']})"
        for row in first.to_dict("records")
    ]


def _with_runs(first: pd.DataFrame, columns: Mapping[str, Any], by: list[str]) -> Table:
    """Rows in the order of `by`, and where any comparison was run several times what all of its runs say."""
    runs = {"all runs": first["all runs"]} if (first["all runs"] != "").any() else {}
    return Table(pd.DataFrame({**columns, **runs}).set_index(by).sort_index())


def _p_text(p: float) -> str:
    return "-" if np.isnan(p) else "<\N{NO-BREAK SPACE}0.001" if p < 0.001 else f"{p:.3f}"


def _runs_text(runs: pd.DataFrame) -> str:
    """What the runs of a comparison say together; nothing where the first is the only one."""
    values = runs.value.dropna()
    if not runs.value[~of_first_run(runs)].notna().any():
        return ""
    low, high = (number_text(number, 3) for number in (values.min(), values.max()))
    return f"{mean_text(values, 3)}, {low} to {high}, {count_text(values)}"
