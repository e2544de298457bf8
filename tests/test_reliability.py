"""A study's probabilities: read at the honest step, judged, and shown; no number where there is none."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from predicted import SPLITS
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from ecglib import reliability, reliability_figures, reliability_tables, shortcuts
from ecglib.calibration import fit_temperature
from ecglib.errors import EcglibError
from ecglib.grid import Cell
from ecglib.metrics import ScoreSettings
from ecglib.reliability import Forecast, ReliabilitySettings
from ecglib.study import LACKS_CLASS
from ecglib.style import Plot

BOOTSTRAP = ScoreSettings(n_draws=30, seed=0)
OWN = ReliabilitySettings(n_bins=4, n_thresholds=5)
PARTS = ("validation", "test", "external")


def cell(
    model: str = "heartbeit", kind: Any = "finetuned", fraction: float = 1.0, split: str = "official"
) -> Cell:
    return Cell("stemi", model, kind, split, fraction, 0, 0)


def predictions(seed: int = 0, *, good_step: int = 2, n: int = 120) -> pd.DataFrame:
    """Three parts at two steps; labels stay, and the scores of `good_step` know more of them."""
    labels = (np.random.default_rng(7).random(3 * n) < 0.3).astype(int)
    known = pd.DataFrame(
        {
            "record_id": [f"r{i:03d}" for i in range(3 * n)],
            "patient_id": [f"p{i // 2}" for i in range(3 * n)],
            "part": np.repeat(PARTS, n),
            "y_true": labels,
        }
    )
    rng = np.random.default_rng(seed)
    tables = []
    for step in (1, 2):
        distance = 2.0 if step == good_step else 0.2
        y_score = expit(2 * (distance * labels + rng.normal(size=3 * n) - 1)).astype(np.float32)
        tables.append(known.assign(step=step, y_score=y_score))
    return pd.concat(tables, ignore_index=True)


def no_lack(one: Cell) -> str:
    raise AssertionError(f"{one} has predictions")


MODELS = [("heartbeit", "finetuned"), ("random", "finetuned"), ("heartbeit", "head"), ("mobilenetv2", "head")]
CELLS = [cell(model, kind) for model, kind in MODELS]


@pytest.fixture(scope="module")
def forecasts() -> list[Forecast]:
    found = {one: predictions(seed) for seed, one in enumerate(CELLS)}
    return reliability.forecasts(CELLS, found.__getitem__, no_lack, OWN)


@pytest.fixture(scope="module")
def manifest(forecasts: list[Forecast]) -> pd.DataFrame:
    rows = forecasts[0].rows
    n = len(rows)
    return pd.DataFrame(
        {
            "record_id": rows.record_id,
            "patient_id": rows.patient_id,
            "sex": np.where(np.arange(n) % 2, "male", "female"),
            "age": np.linspace(20, 95, n),
            "site": np.where(np.arange(n) % 3, "A", "B"),
            "device": np.where(np.arange(n) % 10, "Y", "Z"),
        }
    )


def read(table: pd.DataFrame) -> Forecast:
    (one,) = reliability.forecasts([cell()], lambda _: table, no_lack, OWN)
    return one


# --- reading ---


def test_the_step_is_the_one_that_validation_chose() -> None:
    for good_step in (1, 2):
        table = predictions(good_step=good_step)
        wanted = table[(table.step == good_step) & (table.part == "test")]
        assert list(read(table).part("test").y_score) == list(wanted.y_score)


def test_the_temperature_is_fitted_on_validation_and_on_nothing_else() -> None:
    table = predictions()
    changed = table.assign(y_score=table.y_score.where(table.part == "validation", table.y_score / 3))
    one, other = read(table), read(changed)
    validation = one.part("validation")
    fitted = fit_temperature(validation.y_true.to_numpy(), validation.y_score.to_numpy())
    assert one.temperature == other.temperature == fitted
    for part in PARTS:
        rows = one.part(part)
        assert roc_auc_score(rows.y_true, rows.scaled) == roc_auc_score(rows.y_true, rows.y_score)


def test_the_first_split_draw_and_seed_are_read_at_the_asked_fraction() -> None:
    cells = [
        cell(),
        cell(fraction=0.1),
        cell(split="seed42"),
        Cell("stemi", "random", "head", "official", 1.0, 0, 1),
    ]
    found = reliability.forecasts(cells, lambda _: predictions(), no_lack, OWN)
    assert [one.cell for one in found] == [cells[0]]
    with pytest.raises(EcglibError, match=r"label_fraction=0\.5.*0\.1, 1"):
        reliability.forecasts(
            cells, lambda _: predictions(), no_lack, ReliabilitySettings(label_fraction=0.5)
        )


@pytest.mark.parametrize(
    "setting",
    [{"label_fraction": 0.0}, {"specificity": 1.0}, {"n_bins": 1}, {"n_thresholds": 2}, {"min_positives": 0}],
)
def test_what_cannot_be_judged_is_refused_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(EcglibError, match=next(iter(setting))):
        ReliabilitySettings(**setting)


# --- what lacks ---


def without(part: str) -> pd.DataFrame:
    table = predictions()
    return table.assign(y_true=table.y_true.where(table.part != part, 0))


def test_a_part_that_lacks_a_class_is_left_out_and_named() -> None:
    one = read(without("test"))
    assert one.scored == ["external"]
    assert "test lacks a class" in reliability_tables.forecast_sentence([one], SPLITS)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (None, LACKS_CLASS),
        (None, "unstable: loss not finite at step 2 of 3"),
        (without("validation"), "no step can be chosen"),
    ],
)
def test_a_model_that_cannot_be_read_is_named_and_shows_no_number(
    given: Any, why: str, manifest: Any
) -> None:
    (one,) = reliability.forecasts([cell()], lambda _: given, lambda _: why, OWN)
    assert why in reliability_tables.forecast_sentence([one], SPLITS)
    for name, (table, text) in judged([one], manifest).items():
        assert table.empty, name
        assert list(text.iloc[:, 0]) == ["not estimable"], name
    for name, figure in drawn([one], manifest).items():
        assert figure.axes[0].get_title(loc="left") == "Nothing is estimable here", name
    assert reliability_tables.prevalence_sentence([one], None, np.array([0])) == "Not estimable."


# --- judging ---


def judged(given: list[Forecast], manifest: pd.DataFrame) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Each long table and what a page shows of it."""
    calibration = reliability.calibration(given, OWN, BOOTSTRAP)
    decisions = reliability.decisions(given, OWN, BOOTSTRAP)
    points = reliability.operating_points(given, OWN, BOOTSTRAP)
    groups = reliability.by_subgroup(given, manifest, OWN, BOOTSTRAP)
    return {
        "calibration": (calibration, reliability_tables.calibration_table(calibration)),
        "decisions": (decisions, reliability_tables.decision_table(decisions)),
        "points": (points, reliability_tables.operating_table(points, OWN.specificity)),
        "groups": (groups, reliability_tables.subgroup_table(groups)),
    }


def shortcut_scores(manifest: pd.DataFrame) -> pd.DataFrame:
    train, test, external = np.split(np.arange(len(manifest)), 3)
    rows = {"train": train, "test": test, "external": external}
    labels = {"stemi": (np.arange(len(manifest)) % 4 == 0).astype(int), "hcm": np.zeros(len(manifest), int)}
    return shortcuts.score_shortcuts(manifest, labels, rows, 10, BOOTSTRAP)


def drawn(given: list[Forecast], manifest: pd.DataFrame) -> dict[str, Plot]:
    ranking = reliability.discrimination(given, BOOTSTRAP)
    known = shortcut_scores(manifest)
    return {
        "roc": reliability_figures.roc(given, ranking),
        "precision_recall": reliability_figures.precision_recall(given, ranking),
        "reliability": reliability_figures.reliability(reliability.curves(given, OWN, BOOTSTRAP)),
        "decisions": reliability_figures.decisions(reliability.decisions(given, OWN, BOOTSTRAP)),
        "subgroups": reliability_figures.subgroups(reliability.by_subgroup(given, manifest, OWN, BOOTSTRAP)),
        "shortcuts": reliability_figures.shortcuts(known, ranking, "stemi"),
    }


def test_ranking_is_scikit_learns(forecasts: list[Forecast]) -> None:
    table = reliability.discrimination(forecasts, BOOTSTRAP).set_index(["model", "kind", "part", "metric"])
    for one in forecasts:
        for part in ("test", "external"):
            rows, key = one.part(part), (one.cell.model, one.cell.kind, part, "auroc")
            assert table.value[key] == pytest.approx(roc_auc_score(rows.y_true, rows.y_score))
            assert table.low[key] <= table.value[key] <= table.high[key]


def test_the_operating_threshold_comes_from_validation(forecasts: list[Forecast]) -> None:
    table = reliability.operating_points(forecasts[:1], OWN, BOOTSTRAP)
    threshold = table.threshold.iloc[0]
    rows = forecasts[0].part("validation")
    assert threshold in set(rows.y_score[rows.y_true == 0])
    assert (rows.y_score[rows.y_true == 0] <= threshold).mean() >= OWN.specificity
    test = forecasts[0].part("test")
    found = table[(table.part == "test") & (table.measure == "sensitivity")].value.iloc[0]
    assert found == (test.y_score[test.y_true == 1] > threshold).mean()


def test_every_table_of_a_page_is_whole_and_shows_no_nan(
    forecasts: list[Forecast], manifest: pd.DataFrame
) -> None:
    for name, (table, text) in judged(forecasts, manifest).items():
        shown = text.to_csv()
        assert not any(word in shown for word in ("nan", "inf", "-0.00")), name
        for model in ("HeartBEiT", "random weights", "MobileNetV2"):
            assert model in shown, name
        assert set(table.kind) == {"finetuned", "head"}, name
    groups: Any = judged(forecasts, manifest)["groups"][1]
    assert groups.loc[("device", "Z"), "HeartBEiT, head"] == "not estimable"


def test_the_shortcut_table_marks_the_page_and_what_is_not_estimable(manifest: pd.DataFrame) -> None:
    table: Any = reliability_tables.shortcut_table(shortcut_scores(manifest), "stemi")
    assert list(table.index) == ["STEMI (this page)", "HCM"]
    assert set(table.loc["HCM", list(shortcuts.KNOWN)]) == {"not estimable"}
    assert "not estimable" not in set(table.loc["STEMI (this page)"])


def test_sentences_say_how_many_and_how_common(forecasts: list[Forecast]) -> None:
    test = forecasts[0].part("test")
    said = reliability_tables.forecast_sentence(forecasts, SPLITS)
    assert f"120 ECGs internal test ({test.y_true.sum()} with the outcome)" in said
    rows, labels = {"train": np.arange(4)}, np.array([1, 0, 0, 0])
    said = reliability_tables.prevalence_sentence(forecasts, rows, labels)
    assert said.startswith(
        f"The outcome is in 25.0 % of the training ECGs and {100 * test.y_true.mean():.1f} %"
    )


def test_every_judgement_stands_beside_its_ecgs_and_those_with_the_outcome(
    forecasts: list[Forecast], manifest: pd.DataFrame
) -> None:
    counts = {part: int(forecasts[0].part(part).y_true.sum()) for part in ("test", "external")}
    tables = judged(forecasts, manifest)
    for name in ("calibration", "decisions"):
        text = tables[name][1].reset_index()
        assert set(text["ECGs"]) == {"120"}, name
        for part, positive in (("Internal test", counts["test"]), ("External", counts["external"])):
            assert set(text.loc[text["part"] == part, "positive"]) == {str(positive)}, name
    figures = drawn(forecasts, manifest)
    for name in ("roc", "precision_recall", "decisions"):
        titles = [ax.get_title(loc="left") for ax in figures[name].axes]
        for part, title in zip(("test", "test", "external", "external"), titles, strict=True):
            assert title.endswith(f"\n120 ECGs, {counts[part]} positive"), name
    (shown,) = {
        ax.get_title(loc="left").split("\n")[-1] for ax in figures["reliability"].axes if ax.get_visible()
    }
    assert shown == f"120 ECGs, {counts['test']} positive"


def test_the_page_says_what_pretraining_saw_of_its_split() -> None:
    (one,) = reliability.forecasts([cell(split="seed42")], lambda _: predictions(), lambda _: "", OWN)
    assert f"Predictions on split {SPLITS['seed42']}: " in reliability_tables.forecast_sentence([one], SPLITS)


def test_every_figure_names_its_axes(forecasts: list[Forecast], manifest: pd.DataFrame) -> None:
    panels = {
        "roc": 4,
        "precision_recall": 4,
        "reliability": 6,
        "decisions": 4,
        "subgroups": 1,
        "shortcuts": 1,
    }
    for name, figure in drawn(forecasts, manifest).items():
        assert len(figure.axes) == panels[name], name
        labelled: list[Callable[[], str]] = [
            *(ax.get_xlabel for ax in figure.axes), *(ax.get_ylabel for ax in figure.axes),
            figure.get_supxlabel, figure.get_supylabel,
        ]  # fmt: skip
        assert sum(bool(label()) for label in labelled) >= 2, name


def test_a_model_that_parts_the_classes_is_shown_without_an_interval(manifest: pd.DataFrame) -> None:
    one = read(predictions().assign(y_score=lambda rows: 0.1 + 0.8 * rows.y_true))
    legend = reliability_figures.roc([one], reliability.discrimination([one], BOOTSTRAP)).axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["HeartBEiT 1.00 (no interval)"]
    groups: Any = reliability_tables.subgroup_table(reliability.by_subgroup([one], manifest, OWN, BOOTSTRAP))
    assert groups.loc[("sex", "male"), "HeartBEiT, fine-tuned"] == "1.00 (interval not estimable)"


def test_the_roc_curve_is_drawn_through_its_own_points(forecasts: list[Forecast]) -> None:
    figure = reliability_figures.roc(forecasts, reliability.discrimination(forecasts, BOOTSTRAP))
    ax = figure.axes[0]
    lines = [line for line in ax.lines if str(line.get_label()).startswith("HeartBEiT")]
    (x, y), rows = lines[0].get_data(), forecasts[0].part("test")
    area = np.trapezoid(np.asarray(y, float), np.asarray(x, float))
    assert area == pytest.approx(roc_auc_score(rows.y_true, rows.y_score))
    assert f"{area:.2f}" in str(lines[0].get_label())
