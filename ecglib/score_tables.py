"""Tables of scores: what each cell trained on, its score with its interval, differences, optimism, verdicts;
which intervals hold the truth.

Tables come as text that is ready to be read; sentences are Markdown. No number on a page is typed by hand.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import pandas as pd

from ecglib.claims import (
    EQUALITY_MARGIN,
    NOT_REPRODUCED,
    NOT_RUN,
    NOT_TESTABLE,
    REPRODUCED,
    STEMI_AT_1_PERCENT,
    not_worse,
    percent_of_other,
    read_claims,
    readable,
)
from ecglib.comparisons import OPTIMISM_COLUMNS, holm, of_first_run, optimism
from ecglib.coverage import SIZES, STEP, CoverageSettings, coverage, precision_of_rules, spread_of_auroc
from ecglib.finetune import FinetuneSettings
from ecglib.grid import Cell
from ecglib.intervals import hanley_mcneil
from ecglib.metrics import METRICS, ScoreSettings
from ecglib.splits import DRAWN_BY
from ecglib.style import (
    INTERVAL_NAMES,
    KIND_NAMES,
    METRIC_NAMES,
    MODEL_NAMES,
    NO_ROWS,
    PART_NAMES,
    Table,
    least_to_most,
    listed,
    model_name,
    number_text,
    outcome_name,
)

NOT_ESTIMABLE = "not estimable"
AS_GOOD = f"as good, within {EQUALITY_MARGIN:g} %"
AS_GOOD_WORDS = {REPRODUCED: "yes", NOT_REPRODUCED: "no", NOT_TESTABLE: "open"}
VERDICTS_PAGE = "06_results.html#the-paper-s-claims"
GAIN_COLUMNS = ("kind", "split", "model", "fraction", *OPTIMISM_COLUMNS)


def training_table(
    cells: Sequence[Cell],
    rows_of: Callable[[Cell], Mapping[str, np.ndarray] | None],
    labels: np.ndarray,
    splits: Mapping[str, str],
) -> Table:
    """What each label fraction holds, over its draws: ECGs for training and how many have the outcome.

    `rows_of` is `study.rows`, `labels` 0/1 for each row of the manifest, `splits` `study.split_names`.
    """
    draws: dict[tuple[str, float], dict[int, Cell]] = {}
    for cell in sorted(cells):
        draws.setdefault((cell.split, cell.fraction), {})[cell.draw] = cell
    found = []
    for (split, fraction), of_draws in sorted(draws.items()):
        drawn = [rows["train"] for cell in of_draws.values() if (rows := rows_of(cell)) is not None]
        lacking = len(of_draws) - len(drawn)
        lack = f"; {lacking} {NOT_ESTIMABLE}" if drawn and lacking else ""
        counts = [_least_to_most(map(len, drawn)) + lack]
        counts.append(_least_to_most(int(labels[train].sum()) for train in drawn) + lack)
        drawn_by = DRAWN_BY[split].removesuffix("_id")
        found.append((splits[split], f"{100 * fraction:g} %", len(of_draws), drawn_by, *counts))
    columns = ["split", "labels", "draws", "drawn by", "training ECGs", "with the outcome"]
    return Table(pd.DataFrame(found, columns=pd.Index(columns)).set_index(columns[:2]))


def _least_to_most(counts: Iterable[int]) -> str:
    known = list(counts)
    return least_to_most(known) if known else NOT_ESTIMABLE


def difference_table(
    differences: pd.DataFrame, splits: Mapping[str, str], *, metric: str = "auroc", kind: str = "finetuned"
) -> Table:
    """HeartBEiT's score minus each other model's at the same fraction; of AUROC with DeLong's p, and Holm's.

    Holm's family is what stands in the table. Of several runs the first draw and seed is tested; the mean,
    standard deviation, range and number of all stand beside it. `splits` is `study.split_names`.
    """
    chosen = differences.loc[(differences.metric == metric) & (differences.kind == kind)]
    first = _first_runs(chosen.loc[chosen.fraction == chosen.reference_fraction])
    tests = {}
    if metric == "auroc":
        adjusted = f"p, Holm, of {first.p.notna().sum()}"
        tests = {"p": map(_p_text, first.p), adjusted: map(_p_text, holm(first.p.to_numpy(float)))}
    columns = {
        **_place_columns(first, splits),
        "labels (%)": _in_percent(first.fraction),
        "against": _in_order(first.model, model_name, MODEL_NAMES),
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
    chosen = differences.loc[(differences.metric == metric) & (differences.kind == kind)]
    first = _first_runs(chosen.loc[chosen.fraction == chosen.reference_fraction])
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
        "training": _in_order(first.kind, KIND_NAMES.get, KIND_NAMES),
        "metric": _in_order(first.metric, METRIC_NAMES.get, METRIC_NAMES),
        "labels (%)": [
            f"{100 * ours:g} against {100 * theirs:g}"
            for ours, theirs in zip(first.fraction, first.reference_fraction, strict=True)
        ],
        "against": _in_order(first.model, model_name, MODEL_NAMES),
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
        "outcome": _in_order(first.outcome, outcome_name, dict.fromkeys(first.outcome)),
        "split": first.split.map(splits),
        "part": _in_order(first.part, PART_NAMES.get, PART_NAMES),
        **_count_columns(first),
    }


def _count_columns(rows: pd.DataFrame) -> dict[str, Any]:
    return {"ECGs": rows.n.map("{:,.0f}".format), "positive": rows.n_positive.map("{:,.0f}".format)}


def _difference_texts(first: pd.DataFrame) -> list[str]:
    """Each difference with its interval, and again in percent of the other model's score; or what lacks."""
    return [
        f"{_interval_text(row['value'], row['low'], row['high'], digits=3)}; "
        f"{_interval_text(*percent_of_other(row), digits=1)} %"
        if np.isfinite(row["value"])
        else f"{NOT_ESTIMABLE} ({row['reason']})"
        for row in first.to_dict("records")
    ]


def _with_runs(first: pd.DataFrame, columns: Mapping[str, Any], by: list[str]) -> Table:
    """Rows in the order of `by`, and where any comparison was run several times what all of its runs say."""
    runs = {"all runs": first["all runs"]} if (first["all runs"] != "").any() else {}
    return Table(pd.DataFrame({**columns, **runs}).set_index(by).sort_index())


def _interval_text(value: float, low: float, high: float, digits: int = 2) -> str:
    return "{} ({} to {})".format(*(number_text(number, digits) for number in (value, low, high)))


def _p_text(p: float) -> str:
    return "-" if np.isnan(p) else "<\N{NO-BREAK SPACE}0.001" if p < 0.001 else f"{p:.3f}"


def _runs_text(runs: pd.DataFrame) -> str:
    """What the runs of a comparison say together; nothing where the first is the only one."""
    values = runs.value.dropna()
    if not runs.value[~of_first_run(runs)].notna().any():
        return ""
    low, high = (number_text(number, 3) for number in (values.min(), values.max()))
    return f"{_mean_text(values, 3)}, {low} to {high}, {_count_text(values)}"


def _mean_text(values: pd.Series, digits: int) -> str:
    """Mean, and standard deviation where there are several."""
    mean, spread = (number_text(number, digits) for number in values.agg(["mean", "std"]))
    return f"{mean} ± {spread}" if len(values) > 1 else mean


def _count_text(runs: Sized) -> str:
    return f"{len(runs)} runs" if len(runs) > 1 else "1 run"


def score_table(
    scores: pd.DataFrame,
    splits: Mapping[str, str],
    metric: str,
    *,
    kind: str = "finetuned",
    protocol: str = "honest",
) -> Table:
    """The form of the paper's Suppl. Tables 1 and 2: a row for outcome, part and fraction, a column a model.

    Cells read `value (low-high)`; where a cell was run more than once, that of the first draw and seed, then
    mean, standard deviation and number of all runs. Where no number exists: "not estimable"; no other run
    takes the place of the first. `splits` is
    `study.split_names`.
    """
    chosen = scores.loc[(scores.protocol == protocol) & (scores.kind == kind)]
    known = chosen.loc[(chosen.metric == metric) & chosen.value.notna()]
    keys = ["outcome", "split", "fraction", "model"]
    runs = known.groupby([*keys, "part"])
    texts = pd.DataFrame({"text": [_score_text(cells) for _, cells in runs]}, index=runs.size().index)
    sizes = known.groupby(["outcome", "split", "part"]).first().reset_index()
    wanted = chosen.drop_duplicates(keys).loc[:, keys]
    wanted = wanted.merge(
        sizes.loc[:, ["outcome", "split", "part", "n", "prevalence"]], on=["outcome", "split"]
    )
    table = wanted.merge(texts.reset_index(), how="left", on=[*keys, "part"])
    return _readable(table.fillna({"text": NOT_ESTIMABLE}).assign(split=table.split.map(splits)))


def _score_text(runs: pd.DataFrame) -> str:
    """The first run, or that there is none, then all where there are others."""
    first = runs.loc[of_first_run(runs)]
    texts = [f"{row.value:.2f} ({row.low:.2f}-{row.high:.2f})" for row in first.itertuples()]
    texts = texts or [NOT_ESTIMABLE]
    if len(runs) > len(first):
        texts.append(f"{_mean_text(runs.value, 2)} over {_count_text(runs)}")
    return "; ".join(texts)


def _readable(table: pd.DataFrame) -> Table:
    """Pivot to a column for each model, with the words that readers know, in their order."""
    words = {
        "outcome": _in_order(table.outcome, outcome_name, dict.fromkeys(table.outcome)),
        "split": table.split,
        "part": _in_order(table.part, PART_NAMES.get, PART_NAMES),
        "labels (%)": _in_percent(table.fraction),
        "n": table.n.astype(int),
        "prevalence (%)": (100 * table.prevalence).round(1),
    }
    rows = pd.DataFrame(
        {**words, "model": _in_order(table.model, model_name, MODEL_NAMES), "text": table.text}
    )
    wide = rows.pivot_table(index=list(words), columns="model", values="text", aggfunc="first", observed=True)
    return Table(wide.astype(object).fillna("-").rename_axis(columns=None))


def _in_order(
    values: Iterable[Any], name: Callable[[Any], str | None], order: Iterable[Any]
) -> pd.Categorical:
    """Values by their names, which sort as `order` does."""
    return pd.Categorical([name(value) for value in values], [name(value) for value in order], ordered=True)


def step_gains(
    cells: Sequence[Cell], predictions_of: Callable[[Cell], pd.DataFrame | None], settings: ScoreSettings
) -> pd.DataFrame:
    """What the paper's choice of the step adds, in the mean over a model's fine-tuned cells at a fraction.

    One row for each split, model, fraction, part and metric: `comparisons.optimism` with these and the kind.
    Heads have no steps of training, and not all of their strengths' scores are kept with the book.
    """
    groups: dict[tuple, list[pd.DataFrame]] = {}
    for cell in cells:
        if cell.kind == "finetuned" and (predictions := predictions_of(cell)) is not None:
            groups.setdefault((cell.kind, cell.split, cell.model, cell.fraction), []).append(predictions)
    found = [
        optimism(tables, settings).assign(
            **dict(zip(("kind", "split", "model", "fraction"), key, strict=True))
        )
        for key, tables in groups.items()
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=pd.Index(GAIN_COLUMNS))


def step_gain_table(gains: pd.DataFrame, splits: Mapping[str, str], metric: str = "auroc") -> Table:
    """Both protocols' mean readings of the same cells, and the paper's minus the honest one.

    ECGs and positive ones are means over the cells, too. `splits` is `study.split_names`.
    """
    rows = gains.loc[gains.metric == metric]
    table = pd.DataFrame(
        {
            "kind": rows.kind.map(KIND_NAMES),
            "split": rows.split.map(splits),
            "part": _in_order(rows.part, PART_NAMES.get, PART_NAMES),
            **_count_columns(rows),
            "model": _in_order(rows.model, model_name, MODEL_NAMES),
            "labels (%)": _in_percent(rows.fraction),
            "cells": rows.n_cells,
            "step differs in": rows.n_moved,
            "honest": rows.honest.map("{:.3f}".format),
            "paper's": rows.paper.map("{:.3f}".format),
            "paper's minus honest": [
                _interval_text(*row, digits=3) for row in rows[["value", "low", "high"]].to_numpy()
            ],
        }
    )
    by = ["kind", "split", "part", "model", "labels (%)"]
    return Table(table.set_index(by).sort_index())


def agreement_table(scores: pd.DataFrame, splits: Mapping[str, str]) -> Table:
    """The two honest intervals of the same cells: how wide they are, and how far their limits lie apart.

    `splits` is `study.split_names`.
    """
    known = scores.loc[(scores.protocol == "honest") & scores.value.notna()]
    numbers = pd.DataFrame(
        {
            "width, percentiles": known.high - known.low,
            "width, BCa": known.other_high - known.other_low,
            "lower limit, BCa's minus percentile's": known.other_low - known.low,
            "upper limit, BCa's minus percentile's": known.other_high - known.high,
        }
    )
    names = {"split": splits, "kind": KIND_NAMES, "part": PART_NAMES, "metric": METRIC_NAMES}
    keys = [known[column].map(words) for column, words in names.items()]
    by = numbers.groupby(keys, sort=False)
    return Table(pd.DataFrame({"cells": by.size()}).join(by.mean().map("{:.3f}".format)))


def _in_percent(fractions: pd.Series) -> pd.Categorical:
    return _in_order(fractions, lambda fraction: f"{100 * fraction:g}", sorted(set(fractions)))


def optimism_table(scores: pd.DataFrame, splits: Mapping[str, str], metric: str = "auroc") -> Table:
    """What the paper's protocol adds: its score minus the honest one, and how its intervals shrink.

    `splits` is `study.split_names`.
    """
    known = scores.loc[(scores.metric == metric) & scores.value.notna()]
    known = known.assign(
        width=known.high - known.low,
        outcome=_in_order(known.outcome, outcome_name, dict.fromkeys(known.outcome)),
        split=known.split.map(splits),
        kind=_in_order(known.kind, KIND_NAMES.get, KIND_NAMES),
        part=_in_order(known.part, PART_NAMES.get, PART_NAMES),
    )
    keys = ["outcome", "kind", "part", "split", "fraction", "model", "draw", "seed"]
    honest, paper = (known.loc[known.protocol == p].set_index(keys) for p in ("honest", "paper"))
    ratio = honest.width / paper.width
    table = honest[["n", "n_positive"]].assign(gain=paper.value - honest.value, ratio=ratio)
    by = table.groupby(["outcome", "split", "kind", "part"], observed=True)
    summary = pd.DataFrame(
        {
            **_count_columns(by.first()),
            "cells": by.size(),
            f"{METRIC_NAMES[metric]}, paper minus honest: mean": by.gain.mean().round(3),
            "largest": by.gain.max().round(3),
            "honest interval is wider by (times, median)": by.ratio.median().round(1),
        }
    )
    return Table(summary)


def not_estimable_sentence(scores: pd.DataFrame) -> str:
    """Name the cells without a number and why there is none, or say that there are none."""
    lacking = scores.loc[~scores.estimable.astype(bool)]
    if lacking.empty:
        return "Every cell is estimable: both classes have at least one patient in each fraction."
    names = []
    for row in lacking.to_dict("records"):
        whose = f", {model_name(row['model'])}, draw {row['draw']}" if "unstable" in row["reason"] else ""
        names.append(f"{_place(row)}{whose} ({row['reason']})")
    return f"**Not estimable**: {'; '.join(dict.fromkeys(names))}."


def _place(row: Mapping[str, Any]) -> str:
    return f"{outcome_name(row['outcome'])} at {100 * row['fraction']:g} %, {KIND_NAMES[row['kind']]}"


def length_sentence(
    cells: Sequence[Cell],
    rows_of: Callable[[Cell], Mapping[str, np.ndarray] | None],
    settings: FinetuneSettings,
    splits: Mapping[str, str],
) -> str:
    """How long each fine-tuned cell learns, with its caps, and at how many points both protocols may look.

    `rows_of` is `study.rows`, `splits` `study.split_names`.
    """
    if not any(cell.kind == "finetuned" for cell in cells):
        return (
            "**No network is fine-tuned here**, or none was yet: what there is are heads on frozen features."
        )
    limits = [f"{settings.steps:,} steps of {settings.batch_size} ECGs"] if settings.steps else []
    limits += [f"{settings.epochs} passes over the training ECGs"] if settings.epochs else []
    sizes: dict[tuple[str, float], set[int]] = {}
    for cell in cells:
        rows = rows_of(cell) if cell.kind == "finetuned" else None
        if rows is not None:
            sizes.setdefault((cell.split, cell.fraction), set()).add(len(rows["train"]))
    told = [
        f"{_length_text(sizes_there, settings)} at {100 * fraction:g} % of {splits[split]}"
        for (split, fraction), sizes_there in sorted(sizes.items())
    ]
    return (
        f"Every network learns for at most {' and '.join(limits)}: "
        f"{'; '.join(told) or 'none is estimable'}. The paper's takes 30 passes. The "
        "steps that are scored, evenly spaced, are the epochs among which both protocols choose."
    )


def _length_text(sizes: Iterable[int], settings: FinetuneSettings) -> str:
    """Steps, passes and scored steps of training sets of these sizes."""
    steps = {n: settings.total_steps(n) for n in sizes}
    passes = [n_steps * min(settings.batch_size, n) / n for n, n_steps in steps.items()]
    points = least_to_most(len(settings.scored_steps(n)) for n in steps)
    return f"{least_to_most(steps.values())} steps ({np.mean(passes):.1f} passes, {points} scored)"


def verdict_sentence(judged: pd.DataFrame) -> str:
    """How many claims got which verdict."""
    counts = judged.verdict.value_counts()
    return (
        f"Of {len(judged)} claims: " + "; ".join(f"**{n}** {verdict}" for verdict, n in counts.items()) + "."
    )


def claims_table(
    judged: pd.DataFrame, splits: Mapping[str, str], pages: Container[str], *, tested: bool
) -> Table:
    """The judged claims for which there is a number of ours, or those for which there is none, and why.

    Each with a link to where such a number stands, where this book has it; a number whose page cannot be made
    of kept predictions was computed just above the table. `splits` is `study.split_names`, `pages`
    `study.pages`.
    """
    chosen = readable(judged.loc[judged.ours.notna() == tested], splits).set_index("claim")
    if tested:
        made = [page.partition(".")[0] in pages for page in chosen["page"]]
        chosen["page"] = chosen["page"].where(made, VERDICTS_PAGE)
    runs = ["all runs"] if (chosen["all runs"] != "").any() else []
    ours = ["ours", "cell", *runs, "verdict"] if tested else []
    return Table(chosen.loc[:, ["source", "paper", *ours, "reason", "page"]])


def coverage_table(intervals: pd.DataFrame, statistic: str = "score") -> Table:
    """How often each interval held the truth, with Monte-Carlo standard errors: of scores, or of differences.

    `intervals` is `coverage.simulated_intervals`.
    """
    found = coverage(intervals).query("statistic == @statistic")
    sizes = [_size_text(size, n) for size, n in zip(found["size"], found.n_studies, strict=True)]
    table = pd.DataFrame(
        {
            "positive, studies": pd.Categorical(sizes, list(dict.fromkeys(sizes)), ordered=True),
            "interval": _in_order(found.interval, INTERVAL_NAMES.get, INTERVAL_NAMES),
            "metric": found["metric"],
            "holds the truth (%)": _with_errors(100 * found.coverage, 100 * found.error, 1),
            "truth below / above it (%)": [
                f"{100 * b:.1f} / {100 * a:.1f}" for b, a in zip(found.below, found.above, strict=True)
            ],
            "mean width": found.width.map("{:.3f}".format),
        }
    )
    wide = table.pivot(index=["positive, studies", "interval"], columns="metric").sort_index()
    names = {
        (metric, name): f"{METRIC_NAMES[metric]} {name}" for metric in METRICS for name in table.columns[3:]
    }
    columns = {text: wide[name][metric] for (metric, name), text in names.items()}
    return Table(pd.DataFrame(columns).fillna("-"))


def _size_text(size: str, n_studies: int) -> str:
    n, n_positive, _ = SIZES[size]
    return f"{n_positive} of {n:,}, {n_studies:,} studies"


def _with_errors(values: pd.Series, errors: pd.Series, digits: int) -> list[str]:
    return [f"{value:.{digits}f} ± {error:.{digits}f}" for value, error in zip(values, errors, strict=True)]


def coverage_sentence(intervals: pd.DataFrame) -> str:
    """Whether the interval that is used holds the truth as often as it says, and whether the paper's does."""
    found = coverage(intervals).query("statistic == 'score' and metric == 'auroc' and size == 'large'")
    used, papers = (found.loc[found.interval == name].iloc[0] for name in ("percentile", "of_mean"))
    return (
        f"With {SIZES['large'][1]} positives the interval that is used holds the true AUROC in "
        f"**{100 * used.coverage:.1f} %** of {used.n_studies:,} studies, the interval of the bootstrap mean "
        f"in **{100 * papers.coverage:.1f} %**."
    )


def printed_interval_table(intervals: pd.DataFrame, settings: CoverageSettings) -> Table:
    """The paper's interval of its AUROC for STEMI at 1 % of the labels, beside what its numbers allow."""
    claims = read_claims().set_index("id")
    paper = claims.loc[STEMI_AT_1_PERCENT, ["paper_low", "paper_high"]].to_numpy(float)
    half_a_digit = 0.5 * 10.0 ** -claims.loc[STEMI_AT_1_PERCENT, "decimals"]
    n, n_positive, _ = SIZES["large"]
    chosen = intervals.query("size == 'large' and statistic == 'score' and metric == 'auroc'")
    mean = chosen.groupby("interval")[["low", "high"]].mean()
    rows = {
        "printed in the paper": paper,
        "the widest that is printed so": paper + np.array([-half_a_digit, half_a_digit]),
        "Hanley and McNeil's formula": hanley_mcneil(
            settings.auroc, n_positive, n - n_positive, settings.confidence
        ),
        "simulated studies, one ECG a patient": spread_of_auroc(settings, one_ecg_each=True),
        "simulated studies, patients with up to three": spread_of_auroc(settings, one_ecg_each=False),
        "bootstrap percentiles, mean over the studies": mean.loc["percentile"].to_numpy(),
        "interval of the bootstrap mean, likewise": mean.loc["of_mean"].to_numpy(),
    }
    numbers = pd.DataFrame(rows, index=pd.Index(["low", "high"])).T
    width = numbers.high - numbers.low
    numbers = numbers.map("{:.3f}".format)
    numbers.loc["printed in the paper"] = [f"{limit:.2f}" for limit in paper]
    return Table(
        numbers.assign(
            width=width.map("{:.3f}".format), **{"times the printed": (width / width.iloc[0]).round(1)}
        )
    )


def precision_table(settings: CoverageSettings) -> Table:
    """Average precision beside the trapezoid rule, in the mean over simulated studies."""
    found = precision_of_rules(settings)
    table = pd.DataFrame(
        {
            "positive, studies": [_size_text(size, settings.n_studies(size)) for size in found["size"]],
            "scores": found.scores.map({"fine": "as they are", "rounded": f"in steps of {STEP:g} SD"}),
            "truth": found.truth.map("{:.3f}".format),
            "average precision": found.average_precision.map("{:.3f}".format),
            "trapezoid rule": found.trapezoid.map("{:.3f}".format),
            "trapezoid minus average precision": _with_errors(found.gap, found.error, 4),
        }
    )
    return Table(table.set_index(["positive, studies", "scores"]))
