"""Tables of the pages hold what their sources hold, whole, and say what does not exist."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from predicted import SPLITS

from ecglib import coverage_tables, difference_tables, score_tables, tables
from ecglib.claims import judge, read_claims
from ecglib.comparisons import PERCENT, holm
from ecglib.coverage import CoverageSettings, coverage, simulated_intervals
from ecglib.datasets import Cohort, CohortSettings, open_cohort
from ecglib.domain_shift import ShiftSettings, domain_shift
from ecglib.errors import EcglibError
from ecglib.evidence import sign_pixels, sign_samples
from ecglib.filtering import FilterSettings, preprocess
from ecglib.finetune import FinetuneSettings
from ecglib.grid import Cell, GridSettings
from ecglib.image import ImageSettings, lead_time_to_pixel
from ecglib.metrics import ScoreSettings
from ecglib.pairs import against_others, differences
from ecglib.protocols import score_cell
from ecglib.quality import FAULTS, QualitySettings
from ecglib.records import LEADS_8
from ecglib.splits import assign
from ecglib.style import NO_ROWS, Table, split_name
from ecglib.synthetic import KINDS

CELL = Cell("stemi", "heartbeit", "finetuned", "official", 1.0, 0, 0)


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return open_cohort(CohortSettings(n_patients=60))


def scored(cell: Cell, values: dict[str, float], part: str = "test", estimable: bool = True) -> list[dict]:
    """Rows of a table of scores: protocol -> AUROC, each with an interval of 0.1 on both sides."""
    head = {name: getattr(cell, name) for name in cell.__dataclass_fields__}
    if not estimable:
        return [head | {"protocol": protocol, "estimable": False} for protocol in values]
    sizes = {"part": part, "metric": "auroc", "n": 80, "n_positive": 10, "prevalence": 0.125}
    sizes |= {"estimable": True}
    return [
        head | sizes | {"protocol": protocol, "value": value, "low": value - 0.1, "high": value + 0.1}
        for protocol, value in values.items()
    ]


def test_cohort_table_counts_as_the_manifest_does(cohort: Cohort) -> None:
    parts, manifest = assign(cohort.manifest, "official"), cohort.manifest
    table: Any = tables.cohort_table(cohort, parts)
    sets = {"Fine-tuning": manifest.strat_fold.between(1, 9), "External": manifest.external}
    sets |= {"All": manifest.hcm >= 0, "Internal test": manifest.strat_fold == 10}
    for name, rows in sets.items():
        row = table.loc[("HCM", name)]
        assert row["ECGs"] == str(rows.sum())
        assert row["patients"] == str(manifest.patient_id[rows].nunique())
        assert row["prevalence (%)"] == f"{100 * manifest.hcm[rows].mean():.1f}"
        assert row["women (%)"] == f"{100 * (manifest.sex[rows] == 'female').mean():.0f}"
        assert row["sites"] == ("1" if name == "External" else str(manifest.site[rows].nunique()))
    assert table.loc[("Low LVEF", "Fine-tuning"), "paper's ECGs"] == "511,491"
    assert table.loc[("STEMI", "External"), "paper's ECGs"] == "-"


def test_cohort_table_leaves_out_what_nobody_labelled_and_what_is_excluded(cohort: Cohort) -> None:
    manifest = cohort.manifest.assign(mi_any=cohort.manifest.hcm, sex="unknown", age=np.nan)
    manifest.loc[::2, "mi_any"] = -1
    own = replace(cohort, manifest=manifest, outcomes=("stemi", "mi_any"))
    parts = assign(manifest, "official")
    parts[:20] = "excluded"
    table: Any = tables.cohort_table(own, parts)
    kept = (manifest.mi_any >= 0) & parts.isin(["train", "validation"])
    row = table.loc[("Any infarction", "Fine-tuning")]
    assert row["ECGs"] == str(kept.sum())
    assert row["age missing"] == str(kept.sum())
    assert row["women (%)"] == row["age, mean ± SD (years)"] == row["paper's ECGs"] == "-"
    assert set(table.loc[("Low LVEF", "Fine-tuning")]) == {"511,491", "18", "-"}


def test_synthetic_ecgs_are_said_to_be_synthetic_loudly(cohort: Cohort) -> None:
    assert "synthetic" in tables.source_sentence(cohort)
    assert "synthetic" in tables.outcome_sentence(cohort, "hcm")
    assert "Label: put into the beats by code." in tables.outcome_sentence(cohort, "hcm")
    real = replace(cohort, synthetic=False, name="PTB-XL 1.0.3", comparable=True)
    assert "synthetic" not in tables.source_sentence(real) + tables.outcome_sentence(real, "hcm")
    assert "not PTB-XL's" in tables.source_sentence(replace(real, comparable=False))


def test_outcomes_that_a_source_lacks_are_said_to_be_absent(cohort: Cohort) -> None:
    origins = dict.fromkeys(("stemi", "mi_any"), "from PTB-XL's own codes")
    ptbxl = replace(cohort, synthetic=False, outcomes=tuple(origins), origins=origins)
    here: Any = tables.outcome_sources(ptbxl)["labels here"]
    assert here["Low LVEF"] == here["HCM"] == "does not exist here"
    assert here["STEMI"] == here["Any infarction"] == "from PTB-XL's own codes"


def test_labels_that_nobody_gave_are_not_counted(cohort: Cohort) -> None:
    manifest = cohort.manifest.assign(stemi=-1)
    manifest.loc[:3, "stemi"] = [1, 1, 0, 1]
    manifest = manifest.astype({"stemi": "int8"})
    asked = replace(cohort, manifest=manifest, other_patients=True, notes=("Four are known.",))
    table: Any = tables.cohort_table(asked, pd.Series("train", manifest.index))
    assert table.loc[("STEMI", "Fine-tuning"), ["ECGs", "prevalence (%)"]].tolist() == ["4", "75.0"]
    assert "3 of 4 ECGs (75.0 %)" in tables.outcome_sentence(asked, "stemi")
    assert "Four are known." in tables.source_sentence(replace(asked, synthetic=False))
    unknown = replace(asked, manifest=manifest.assign(stemi=np.int8(-1)))
    table = tables.cohort_table(unknown, pd.Series("train", manifest.index))
    assert table.loc[("STEMI", "Fine-tuning"), ["ECGs", "prevalence (%)"]].tolist() == ["-", "-"]


def test_a_sign_is_shown_of_stemi_or_else_of_what_there_is(cohort: Cohort) -> None:
    usable = pd.Series(True, cohort.manifest.index)
    outcome, row = tables.sign_example(cohort, usable)
    assert (outcome, cohort.manifest.stemi[row]) == ("stemi", 1)
    without = replace(cohort, outcomes=("low_lvef", "hcm"))
    outcome, row = tables.sign_example(without, usable)
    assert cohort.manifest.loc[row, outcome] == 1
    with pytest.raises(EcglibError, match="no usable ECG has any outcome"):
        tables.sign_example(cohort, ~usable)


def test_split_table_adds_up(cohort: Cohort) -> None:
    table: Any = tables.split_table(cohort, lambda split: assign(cohort.manifest, split))
    for split in ("seed42", "official"):
        row = table.loc[split].map(lambda text: int(text.replace(",", "")))
        assert row[["Training", "Validation", "Internal test", "External"]].sum() == len(cohort)
        assert row["training + validation"] == row.Training + row.Validation
        assert row["patients in two parts"] == 0


def test_excluded_ecgs_are_counted_and_shown_apart(cohort: Cohort) -> None:
    usable = pd.Series(cohort.manifest.index % 7 != 3)  # of many a patient one ECG and not another
    manifest = cohort.manifest.assign(usable=usable)
    table: Any = tables.split_table(cohort, lambda split: assign(manifest, split))
    assert (table["Excluded"] == str((~usable).sum())).all()
    assert (table["patients in two parts"] == "0").all()
    described: Any = tables.cohort_table(cohort, assign(manifest, "official"))
    assert described.loc["HCM", "ECGs"].drop("All").astype(int).sum() == usable.sum()
    rows = tables.example_rows(cohort, usable)
    assert usable[list(rows.values())].all()


def test_every_fault_is_listed_with_its_count_by_part_and_its_worst_figure() -> None:
    faults = ["", "missing samples", "", "flat lead,saturated", "flat lead", ""]
    measured = {"missing_leads": 0, "lacking_s": 0.0, "missing_samples": [0, 7, 0, 0, 0, 0]}
    measured |= {"most_moving_mv": 1.0, "least_moving_mv": 0.5, "still_s": [0, 0, 0, 9.5, 2, 0]}
    measured |= {
        "saturated_s": 0.0,
        "amplitude_mv": [1, 2, 3, 8, 1, 1],
        "einthoven_mv": [0.0015] + [np.nan] * 5,
    }
    manifest = pd.DataFrame({"faults": faults} | measured)
    parts = pd.Series(["train", "excluded", "train", "train", "test", "test"])
    table: Any = tables.quality_table(manifest, parts, QualitySettings())
    assert list(table.index) == list(FAULTS)
    flat = table.loc["flat lead"]
    assert (flat["ECGs"], flat["Training"], flat["Internal test"], flat["Excluded"]) == ("2", "1", "1", "0")
    assert "9.50 s" in flat["worst of all ECGs"]
    assert table.loc["missing samples", "Excluded"] == "1"
    assert "leaves it out" in table.loc["missing samples", "the study"]
    assert table.loc["Einthoven", "ECGs"] == "0"
    assert table.loc["Einthoven", "worst of all ECGs"] == "0.0015 mV"
    manifest["einthoven_mv"] = np.nan
    table = tables.quality_table(manifest, parts, QualitySettings())
    assert table.loc["Einthoven", "worst of all ECGs"] == "none is stored"


def test_the_textbook_table_marks_what_each_kind_must_meet() -> None:
    table = tables.textbook_table(seed=3, n=4)
    assert list(table.index) == list(KINDS)
    for name, kind in KINDS.items():
        marked = [c for c in table.columns if str(table.loc[name, c]).endswith("✓")]
        assert sorted(marked) == sorted(kind.criteria)


def test_criteria_are_measured_for_known_conditions_or_else_for_labels(cohort: Cohort) -> None:
    known = tables.criteria_table(cohort, n=3)
    assert "Hypertension (LVH)" in known.index
    labelled = tables.criteria_table(replace(cohort, drawn=None), n=3)
    assert list(labelled.index) == ["None of these", "Low LVEF", "HCM", "STEMI"]
    assert (known.drop(columns="ECGs") <= 100).all(axis=None)
    assert set(tables.criteria_sources().index) == set(known.columns) - {"ECGs"}


def test_examples_have_what_their_name_says(cohort: Cohort) -> None:
    rows = tables.example_rows(cohort, pd.Series(True, cohort.manifest.index))
    marked: Any = cohort.manifest[list(cohort.outcomes)]
    assert marked.iloc[rows["No outcome"]].sum() == 0
    for name, outcome in (("Low LVEF", "low_lvef"), ("HCM", "hcm"), ("STEMI", "stemi")):
        assert marked.iloc[rows[name]][outcome] == 1
    assert list(tables.people(cohort, rows)["record id"]) == list(
        cohort.manifest.record_id[list(rows.values())]
    )


def test_definitions_of_stemi_are_counted_on_ptbxl_only(cohort: Cohort, ptbxl_subset: Any) -> None:
    assert list(tables.stemi_definitions(cohort, ptbxl_subset, "acute_strict")) == ["rule"]
    real = open_cohort(CohortSettings(source="ptbxl", stemi_definition="acute_strict"), ptbxl_subset)
    table: Any = tables.stemi_definitions(real, ptbxl_subset, "acute_strict")
    assert table.loc["acute_strict", "ECGs"] == f"{real.manifest.stemi.sum():,}"
    assert table.loc["mi_any", "ECGs"] == f"{real.manifest.mi_any.sum():,}"
    assert list(table.index[table.used == "yes"]) == ["acute_strict"]


@pytest.mark.parametrize(("frequency", "band"), [(0.2, 0), (10.0, 1), (60.0, 2)])
def test_power_of_a_sine_lies_in_its_band(frequency: float, band: int) -> None:
    sine = np.sin(2 * np.pi * frequency * np.arange(2500) / 500)[None]
    row = tables.band_power({"sine": sine}, 500).loc["sine"].to_numpy(float)
    assert row[band] == pytest.approx(1000 / np.sqrt(2), rel=1e-3)
    assert np.delete(row, band).max() < 1


def test_a_patch_of_the_papers_image_spans_357_ms() -> None:
    facts: Any = tables.patch_table(FilterSettings(), ImageSettings())["one patch"]
    assert facts["time (ms)"] == "357"
    assert facts["pixels"] == "16 x 16"


def test_each_bound_of_the_tokenizer_is_judged_by_itself() -> None:
    alive = {"codes_used": 64, "perplexity": 32.0, "commonest_share": 0.3, "error_ratio": 0.9}
    table: Any = tables.token_table(alive)
    assert table["met"].tolist() == ["yes"] * 4
    worse = {"codes_used": 63, "perplexity": 31.9, "commonest_share": 0.31, "error_ratio": 0.91}
    for place, (name, value) in enumerate(worse.items()):
        table = tables.token_table(alive | {name: value})
        assert table["met"].tolist() == ["NO" if row == place else "yes" for row in range(4)]


def test_mask_table_tells_corner_from_centre() -> None:
    masks = np.zeros((4, 14, 14), bool)
    masks[:, 6:8, 6:8] = True
    masks[0, 0, 0] = True
    row: Any = tables.mask_table({"centre": masks.reshape(4, 196)}).loc["centre"]
    assert row["least to most"] == "4 to 5"
    assert row["a central patch is hidden in (%)"] == "100"
    assert row["a corner is hidden in (%)"] == "6"


def test_a_patch_counts_for_a_lead_by_its_share_of_the_band() -> None:
    masks = np.zeros((4, 14, 14), bool)
    masks[:2, 1] = True  # row 1: 3/7 of lead I's band, 1/7 of lead II's
    row: Any = tables.mask_lead_table({"one row": masks.reshape(4, 196)}).loc["one row"]
    assert row.tolist() == ["21", "7", *"000000"]
    sentence = tables.mask_lead_sentence({"one row": masks.reshape(4, 196)})
    assert sentence == "Lead I, V6 and the lead that is hidden most: 21, 0 and 21 % under `one row`."


def test_a_lead_is_judged_by_its_own_commonest_token() -> None:
    measured = pd.DataFrame(
        {
            "lead": ["I", "V5", "V6"],
            "hidden": [1234.4, 0, 7],
            "accuracy": [0.5, np.nan, 0.2],
            "majority": [0.25, np.nan, 0.2 + 1e-9],
        }
    )
    table: Any = tables.lead_accuracy_table(measured.assign(above=measured.accuracy - measured.majority))
    assert table.loc["I"].tolist() == ["1,234", "50.0", "25.0", "+25.0"]
    assert table.loc["V5"].tolist() == ["0", "-", "-", "-"]
    assert table.loc["V6"].tolist() == ["7", "20.0", "20.0", "+0.0"]


def test_ranges_are_told_in_millivolts() -> None:
    ranges = pd.DataFrame(
        {"lead": ["V1"], "original_mv": 1.234, "copy_mv": 1.1, "correlation": np.nan, "error_mv": 0.0456}
    )
    table: Any = tables.amplitude_table(ranges)
    assert table.loc["V1"].tolist() == ["1.23", "1.10", "0.046", "-"]


@pytest.mark.parametrize(("accuracy", "verdict"), [(0.5, "above"), (0.2, "not above"), (0.1, "not above")])
def test_pretraining_is_judged_by_the_commonest_token(accuracy: float, verdict: str) -> None:
    history = pd.DataFrame(
        {"step": [1, 2], "loss": [6.2, 3.0], "accuracy": accuracy, "majority_accuracy": 0.2}
    )
    sentence = tables.pretraining_sentence(history, 512)
    assert f"**{verdict}**" in sentence
    assert "ln(512) = 6.24" in sentence


def test_distances_stand_beside_the_papers() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 8, 8), np.uint8)
    found, distances = domain_shift(pixels, pixels[:3] // 2, ShiftSettings(n_draws=10))
    table: Any = tables.shift_table(found, 0.95)
    assert table.loc["ECG and ECG", "the paper's mean"] == "2.14"
    assert table.loc["Blank page and photograph", "the paper's mean"] == "-"
    assert table["mean distance (grey levels)"].tolist() == [f"{mean:.1f}" for mean in found["mean"]]
    named, paper = tables.shift_series(distances)
    assert set(paper) < set(named) == set(table.index)


# --- scores ---


def test_score_table_puts_models_side_by_side_and_never_a_number_where_there_is_none() -> None:
    rows = scored(CELL, {"honest": 0.8, "paper": 0.9})
    rows += scored(replace(CELL, model="random"), {"honest": 0.7})
    rows += scored(replace(CELL, fraction=0.01), {"honest": 0.0}, estimable=False)
    table: Any = score_tables.score_table(pd.DataFrame(rows), SPLITS, "auroc").reset_index()
    assert list(table["labels (%)"]) == ["1", "100"]
    assert list(table["HeartBEiT"]) == ["not estimable", "0.80 (0.70-0.90)"]
    assert list(table["random weights"]) == ["-", "0.70 (0.60-0.80)"]
    assert list(table["n"]) == [80, 80]
    assert list(table["prevalence (%)"]) == [12.5, 12.5]


def test_of_several_runs_the_first_stands_before_the_mean_spread_and_number_of_all() -> None:
    values = (0.7, 0.8)
    rows = [row for draw, v in enumerate(values) for row in scored(replace(CELL, draw=draw), {"honest": v})]
    table: Any = score_tables.score_table(pd.DataFrame(rows[::-1]), SPLITS, "auroc")
    assert table["HeartBEiT"].item() == f"0.70 (0.60-0.80); 0.75 ± {np.std(values, ddof=1):.2f} over 2 runs"


def test_optimism_is_the_papers_score_minus_the_honest_one() -> None:
    rows = scored(CELL, {"honest": 0.7, "paper": 0.75})
    rows += scored(replace(CELL, fraction=0.5), {"honest": 0.6, "paper": 0.75})
    table: Any = score_tables.optimism_table(pd.DataFrame(rows), SPLITS)
    assert table["AUROC, paper minus honest: mean"].item() == pytest.approx(0.1)
    assert table["largest"].item() == pytest.approx(0.15)
    assert table["cells"].item() == 2
    assert table[["ECGs", "positive"]].to_numpy().tolist() == [["80", "10"]]


def test_optimism_on_two_splits_is_not_mixed() -> None:
    rows = scored(CELL, {"honest": 0.7, "paper": 0.75})
    rows += scored(replace(CELL, split="seed42"), {"honest": 0.6, "paper": 0.75})
    table: Any = score_tables.optimism_table(pd.DataFrame(rows), SPLITS)
    largest = table["largest"].droplevel(["outcome", "kind", "part"])
    assert largest.to_dict() == pytest.approx({"official": 0.05, SPLITS["seed42"]: 0.15})


def test_what_is_not_estimable_is_named_once() -> None:
    lacking = scored(replace(CELL, fraction=0.01), {"honest": 0, "paper": 0}, estimable=False)
    told = pd.DataFrame(scored(CELL, {"honest": 0.7}) + lacking).assign(reason="no patient of one class")
    sentence = score_tables.not_estimable_sentence(told)
    assert sentence == "**Not estimable**: STEMI at 1 %, fine-tuned (no patient of one class)."
    unstable = told.assign(reason="unstable: loss not finite at step 3 of 9")
    sentence = score_tables.not_estimable_sentence(unstable)
    assert (
        "STEMI at 1 %, fine-tuned, HeartBEiT, draw 0 (unstable: loss not finite at step 3 of 9)" in sentence
    )
    assert "Every cell" in score_tables.not_estimable_sentence(pd.DataFrame(scored(CELL, {"honest": 0.7})))


def test_training_table_counts_records_and_outcomes() -> None:
    cells = [replace(CELL, fraction=0.5, draw=draw) for draw in (0, 1)]
    cells += [replace(CELL, fraction=0.8, draw=draw) for draw in (0, 1, 2)]
    cells += [CELL, replace(CELL, model="random")]
    train = {(0.8, 0): [0, 2], (0.8, 1): [0, 2, 3], (1.0, CELL.draw): [0, 2, 3]}

    def rows(cell: Cell) -> dict[str, np.ndarray] | None:
        known = train.get((cell.fraction, cell.draw))
        return None if known is None else {"train": np.array(known)}

    table: Any = score_tables.training_table(cells, rows, np.array([1, 1, 1, 0]), SPLITS)
    assert table["draws"].tolist() == [2, 3, 1]
    assert table["training ECGs"].tolist() == ["not estimable", "2-3; 1 not estimable", "3"]
    assert table.index.get_level_values("split").tolist() == ["official"] * 3
    assert table["drawn by"].tolist() == ["patient"] * 3
    assert table["with the outcome"].tolist() == ["not estimable", "2; 1 not estimable", "2"]


def predictions(seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    n = 40
    y_true = np.arange(n) % 4 == 0
    columns = {"record_id": [f"r{i:02d}" for i in range(n)], "patient_id": [f"p{i:02d}" for i in range(n)]}
    score = rng.random(n) + y_true * 0.3
    parts = [
        pd.DataFrame(columns | {"part": part, "step": 1, "y_true": y_true.astype(int), "y_score": score})
        for part in ("validation", "test")
    ]
    return pd.concat(parts, ignore_index=True)


def test_difference_table_corrects_p_over_its_own_rows_and_tests_the_first_run() -> None:
    cells = GridSettings(fractions=(0.1, 1.0), draws=(2,), extra_models=(), head_models=("heartbeit",)).cells(
        "stemi"
    )
    made = {cell: predictions(seed) for seed, cell in enumerate(cells)}
    found: Any = differences(against_others(cells), made.get, ScoreSettings(n_draws=20))
    table: Any = difference_tables.difference_table(found, SPLITS).reset_index()
    assert table["labels (%)"].tolist() == ["10", "100"], "other pairs of fractions are no members"
    first = found[
        (found.metric == "auroc") & (found.draw == 0) & (found.fraction == found.reference_fraction)
    ]
    assert table["p"].tolist() == [f"{p:.3f}" for p in first.p]
    assert table[["ECGs", "positive"]].to_numpy().tolist() == [["40", "10"]] * 2
    percent = 100 * first.value.iloc[0] / first.value_b.iloc[0]
    assert f"; {percent:.1f} (" in table["AUROC, difference"][0]
    assert "p" not in difference_tables.difference_table(found, SPLITS, metric="auprc")
    assert table["p, Holm, of 2"].tolist() == [f"{p:.3f}" for p in holm(first.p.to_numpy())]
    assert table["AUROC, difference"][0].startswith(f"{first.value.iloc[0]:.3f} ({first.low.iloc[0]:.3f} to ")
    runs = found[
        (found.metric == "auroc") & (found.fraction == 0.1) & (found.reference_fraction == 0.1)
    ].value
    assert table["all runs"].tolist() == [
        f"{runs.mean():.3f} ± {runs.std():.3f}, {runs.min():.3f} to {runs.max():.3f}, 2 runs", ""
    ]  # fmt: skip
    assert difference_tables.difference_table(found.iloc[:0], SPLITS).empty


def test_a_sentence_says_whom_heartbeit_leads_by_the_interval_of_the_first_run() -> None:
    limits = {
        ("random", 0.1): (0.01, 0.2),
        ("mobilenetv2", 0.1): (-0.2, -0.01),
        ("efficientnet_lite2", 0.1): (-1, 1),
        ("random", 1.0): (0.01, 0.1),
        ("mobilenetv2", 1.0): (0.02, 0.2),
        ("efficientnet_lite2", 1.0): (0.1, 1),
    }
    rows = [
        fewer_labels("stemi", *ends) | {"model": model, "fraction": fraction, "reference_fraction": fraction}
        for (model, fraction), ends in limits.items()
    ]
    found = pd.DataFrame(rows).assign(metric="auroc", split="official", reason="")
    others = found.assign(draw=1, low=-1.0, high=1.0)
    said = difference_tables.lead_sentence(pd.concat([found, others]), SPLITS, kind="head")
    assert said == (
        "**Seen here** (Internal test, official; AUROC): HeartBEiT is with 10 % of the labels ahead of "
        "random weights, behind MobileNetV2, not told apart from EfficientNet-Lite2; with 100 % of the "
        "labels ahead of EfficientNet-Lite2, MobileNetV2 and random weights."
    )
    assert difference_tables.lead_sentence(found, SPLITS) == NO_ROWS, "no other kind's"


def test_a_sentence_says_for_whom_tuning_pays() -> None:
    limits = {("heartbeit", 0.1): (-0.2, -0.1), ("mobilenetv2", 0.1): (0.1, 0.2), ("random", 0.1): (-1, 1)}
    limits |= {("heartbeit", 1.0): (-0.3, -0.1), ("random", 1.0): (0.1, 0.2)}
    rows = [
        fewer_labels("stemi", *ends) | {"model": model, "fraction": fraction, "reference_fraction": fraction}
        for (model, fraction), ends in limits.items()
    ]
    gains = pd.DataFrame(rows).assign(metric="auroc", kind="finetuned", p=0.5, reason="")
    gains["split"] = "official"
    assert difference_tables.tuning_sentence(gains, SPLITS) == (
        "**Seen here** (Internal test, official), all weights against a head: better for MobileNetV2 (10 %) "
        "and random weights (100 %); worse for HeartBEiT (10 and 100 %); "
        "not told apart for random weights (10 %)."
    )
    assert difference_tables.tuning_table(gains, SPLITS).index.names[-1] == "model"
    assert difference_tables.tuning_sentence(gains.iloc[:0], SPLITS) == NO_ROWS


def test_outcomes_stand_in_the_order_of_the_profile() -> None:
    cells = [replace(CELL, outcome=outcome) for outcome in ("stemi", "low_lvef", "mi_any")]
    cells += [replace(cell, model="mobilenetv2") for cell in cells]
    made = {cell: predictions(seed) for seed, cell in enumerate(cells)}
    found: Any = differences(against_others(cells), made.get, ScoreSettings(n_draws=5))
    table = difference_tables.difference_table(found, SPLITS)
    assert table.index.get_level_values("outcome").tolist() == ["STEMI", "Low LVEF", "Any infarction"]


@pytest.mark.parametrize("absent", [False, True])
def test_no_other_run_takes_the_place_of_a_first_one_that_lacks(absent: bool) -> None:
    cells = [replace(CELL, fraction=0.01, draw=draw) for draw in (0, 1, 2)]
    others = [replace(cell, model="mobilenetv2") for cell in cells]
    beside = [replace(cell, model="efficientnet_lite2") for cell in cells]
    made = {cell: predictions(seed) for seed, cell in enumerate([*cells, *others[1:], *beside])}
    grid = [cell for cell in [*cells, *others, *beside] if cell in made or not absent]
    why = "MobileNetV2: unstable at step 3" if not absent else "the first draw was not run"
    found: Any = differences(
        against_others(grid), made.get, ScoreSettings(n_draws=20), lack_of=lambda _: "unstable at step 3"
    )
    table: Any = difference_tables.difference_table(found, SPLITS).droplevel(["outcome", "split", "part", 3])
    assert table.loc["MobileNetV2", "AUROC, difference"] == f"not estimable ({why})"
    assert table.loc["MobileNetV2", "p"] == "-"
    assert table.loc["MobileNetV2", "ECGs"] == "40"
    runs = found[(found.model == "mobilenetv2") & (found.metric == "auroc") & found.value.notna()].value
    assert table.loc["MobileNetV2", "all runs"].startswith(f"{runs.mean():.3f} ± {runs.std():.3f}, ")
    assert table.loc["MobileNetV2", "all runs"].endswith(", 2 runs")
    assert "p, Holm, of 1" in table, "what was not tested is no member of the family"
    assert "not estimable" not in table.loc["EfficientNet-Lite2", "AUROC, difference"]
    few: Any = difference_tables.fewer_labels_table(found.assign(reference_fraction=1.0), SPLITS)
    assert set(few.xs("MobileNetV2", level="against")["as good, within 5 %"]) == {"-"}
    claims = read_claims().set_index("id", drop=False)
    claim = claims.loc[["auroc-stemi-1pct-test-over-least"]]
    scores = pd.DataFrame(scored(cells[0], {"honest": 0.8}))
    sure = found.assign(
        percent_low=1, percent_high=20
    )  # the network beside is beaten; each network cannot be
    judged = judge(claim, scores, synthetic=False, comparable=True, differences=sure).iloc[0]
    assert judged[["verdict", "reason"]].tolist() == ["not testable here", f"not estimable: {why}"]


def test_one_other_run_stands_alone_where_the_first_lacks() -> None:
    rows = scored(CELL, {"honest": 0}, estimable=False) + scored(replace(CELL, draw=1), {"honest": 0.8})
    for table in (rows, rows[1:]):
        shown: Any = score_tables.score_table(pd.DataFrame(table), SPLITS, "auroc")
        assert shown["HeartBEiT"].tolist() == ["not estimable; 0.80 over 1 run"]


def fewer_labels(outcome: str, low: float, high: float) -> dict[str, Any]:
    """HeartBEiT with 10 % of the labels minus MobileNetV2 with all, whose score is known to be .8."""
    cell = {"outcome": outcome, "model": "mobilenetv2", "kind": "head", "split": "seed42", "fraction": 0.1}
    cell |= {"reference_fraction": 1.0, "draw": 0, "seed": 0, "part": "test", "metric": "auprc"}
    numbers = {"value": (low + high) / 2, "low": low, "high": high}
    numbers |= dict(zip(PERCENT, (100 * number / 0.8 for number in numbers.values()), strict=True))
    return cell | numbers | {"n": 1234, "n_positive": 56}


def test_few_labels_are_as_good_as_many_by_a_margin_that_is_stated() -> None:
    limits = {"stemi": (-0.039, 0.301), "hcm": (-0.041, 0.3), "low_lvef": (-0.039, -0.001)}
    found = pd.DataFrame([fewer_labels(outcome, *ends) for outcome, ends in limits.items()])
    same = found.assign(reference_fraction=0.1)
    table: Any = difference_tables.fewer_labels_table(pd.concat([found, same]), SPLITS).reset_index()
    assert dict(zip(table["outcome"], table["as good, within 5 %"], strict=True)) == {
        "STEMI": "yes", "HCM": "open", "Low LVEF": "no",
    }  # fmt: skip
    row = table.set_index("outcome").loc["STEMI"]
    assert row["difference"] == "0.131 (-0.039 to 0.301); 16.4 (-4.9 to 37.6) %"
    assert row[["ECGs", "positive", "labels (%)"]].tolist() == ["1,234", "56", "10 against 100"]
    planned = [CELL, replace(CELL, kind="head"), replace(CELL, outcome="acute_stemi", kind="head")]
    sentence = difference_tables.fewer_labels_sentence(found, planned)
    assert "above -5 % of the other model's score" in sentence
    lacking = "Acute STEMI, head on frozen features; STEMI, fine-tuned"
    assert sentence.endswith(f"**Not run yet, or not estimable**: {lacking}."), "and nothing never planned"
    both = pd.concat([found, found.assign(kind="finetuned")])
    assert "Not run" not in difference_tables.fewer_labels_sentence(both, planned[:2])


def test_a_split_is_named_with_what_pretraining_saw_of_it_wherever_its_scores_stand() -> None:
    rows = scored(replace(CELL, split="seed42"), {"honest": 0.9, "paper": 0.95})
    scores = pd.DataFrame(rows).assign(other_low=0.8, other_high=1.0)
    found = pd.DataFrame([fewer_labels("stemi", -0.1, 0.1)]).assign(kind="finetuned", metric="auroc", p=0.5)
    equal = found.assign(reference_fraction=0.1)
    gains = equal.assign(honest=0.8, paper=0.9, n_cells=1, n_moved=1)
    claim = read_claims().set_index("id", drop=False).loc[["auroc-stemi-1pct-test-heartbeit"]]
    one = scores.assign(fraction=0.01, n_patients=70, step=1, reason="")
    judged = judge(claim, one, synthetic=False, comparable=True, split="seed42")
    cells, settings = [replace(CELL, split="seed42")], FinetuneSettings()

    def shown(splits: dict[str, str]) -> list[str]:
        return [
            score_tables.score_table(scores, splits, "auroc").to_csv(),
            score_tables.optimism_table(scores, splits).to_csv(),
            score_tables.agreement_table(scores, splits).to_csv(),
            difference_tables.difference_table(equal, splits).to_csv(),
            difference_tables.fewer_labels_table(found, splits).to_csv(),
            score_tables.step_gain_table(gains, splits).to_csv(),
            score_tables.claims_table(judged, splits, (), tested=True).to_csv(),
            score_tables.training_table(cells, lambda _: None, np.zeros(1), splits).to_csv(),
            score_tables.length_sentence(cells, lambda _: {"train": np.arange(9)}, settings, splits),
        ]

    assert all("seed42 (HeartBEiT saw 80 % of its test ECGs, unlabelled)" in text for text in shown(SPLITS))
    unseen = shown({"seed42": split_name("seed42", 0.0)})
    assert all("seed42" in text and "saw" not in text for text in unseen)


def stepped(seed: int) -> pd.DataFrame:
    steps = [predictions(10 * seed + step).assign(step=step) for step in range(3)]
    return pd.concat(steps, ignore_index=True)


def test_step_gains_are_means_over_a_models_cells_at_a_fraction() -> None:
    cells = [replace(CELL, outcome=outcome, fraction=f) for outcome in ("stemi", "hcm") for f in (0.1, 1.0)]
    made = {cell: stepped(seed) for seed, cell in enumerate(cells)}
    bootstrap = ScoreSettings(n_draws=20)
    gains: Any = score_tables.step_gains(cells, made.get, bootstrap)
    assert len(gains) == 4
    row = gains[(gains.fraction == 0.1) & (gains.metric == "auroc")].iloc[0]
    scored_cells = [made[cell] for cell in cells if cell.fraction == 0.1]
    for protocol in ("paper", "honest"):
        values = [score_cell(cell, protocol, bootstrap).value[0] for cell in scored_cells]
        assert row[protocol] == pytest.approx(np.mean(values))
    table: Any = score_tables.step_gain_table(gains, SPLITS).reset_index()
    assert table["labels (%)"].tolist() == ["10", "100"]
    assert table["cells"].tolist() == [2, 2]
    assert table[["ECGs", "positive"]].to_numpy().tolist() == [["40", "10"]] * 2
    assert table["paper's minus honest"][0] == f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f})"
    nothing = score_tables.step_gains(cells, lambda cell: None, bootstrap)
    assert score_tables.step_gain_table(nothing, SPLITS).empty
    heads = [replace(cell, kind="head") for cell in cells]
    assert score_tables.step_gains(heads, lambda cell: stepped(0), bootstrap).empty


def test_agreement_table_compares_the_limits_of_the_same_cells() -> None:
    rows = scored(CELL, {"honest": 0.7, "paper": 0.8}) + scored(replace(CELL, draw=1), {"honest": 0.6})
    table: Any = score_tables.agreement_table(
        pd.DataFrame(rows).assign(other_low=lambda t: t.low - 0.02, other_high=lambda t: t.high + 0.01),
        SPLITS,
    )
    row = table.loc[("official", "fine-tuned", "Internal test", "AUROC")]
    assert row.tolist() == [2, "0.200", "0.230", "-0.020", "0.010"]


@pytest.fixture(scope="module")
def studies() -> tuple[CoverageSettings, pd.DataFrame]:
    settings = CoverageSettings(n_large=3, n_small=4, n_draws=40)
    return settings, simulated_intervals(settings)


def test_coverage_tables_say_how_often_each_interval_holds(studies: tuple) -> None:
    _, intervals = studies
    found = coverage(intervals).set_index(["size", "statistic", "metric", "interval"])
    for statistic, names in (("score", "percentiles, by ECG"), ("difference", "DeLong's test, by patient")):
        table: Any = coverage_tables.coverage_table(intervals, statistic)
        assert len(table) == 8
        assert names in table.index.get_level_values("interval")
        large = table.xs("235 of 4,352, 3 studies").loc["percentiles, by patient"]
        row = found.loc[("large", statistic, "auprc", "percentile")]
        assert large["AUPRC holds the truth (%)"] == f"{100 * row.coverage:.1f} ± {100 * row.error:.1f}"
        assert large["AUPRC mean width"] == f"{row.width:.3f}"
    share = found.loc[("large", "score", "auroc", "of_mean"), "coverage"]
    assert f"bootstrap mean in **{100 * share:.1f} %**" in coverage_tables.coverage_sentence(intervals)


def test_the_printed_interval_stands_beside_the_formula_and_the_simulation(studies: tuple) -> None:
    table: Any = coverage_tables.printed_interval_table(studies[1], studies[0])
    assert table.loc["printed in the paper", ["low", "high"]].tolist() == ["0.88", "0.89"]
    assert table.loc["the widest that is printed so", ["low", "high"]].tolist() == ["0.875", "0.895"]
    assert table.loc["Hanley and McNeil's formula", ["low", "high"]].tolist() == ["0.851", "0.909"]
    assert (table["times the printed"].iloc[2:6].astype(float) > 1).all()


def test_precision_table_shows_the_gap_between_the_rules(studies: tuple) -> None:
    table: Any = coverage_tables.precision_table(studies[0])
    assert table["trapezoid minus average precision"].str.startswith("-").tolist() == [
        True,
        False,
        True,
        False,
    ]
    assert table["truth"].tolist() == ["0.414", "0.359", "0.416", "0.361"], "coarse scores have their own"


def test_the_length_of_training_is_told_with_its_caps() -> None:
    cells = [replace(CELL, fraction=0.1), CELL, replace(CELL, model="random"), replace(CELL, kind="head")]
    sizes = {0.1: 64, 1.0: 6400}
    settings = FinetuneSettings(steps=100, epochs=30, batch_size=32)
    sentence = score_tables.length_sentence(
        cells, lambda c: {"train": np.arange(sizes[c.fraction])}, settings, SPLITS
    )
    assert "at most 100 steps of 32 ECGs and 30 passes over the training ECGs" in sentence
    assert (
        "60 steps (30.0 passes, 4 scored) at 10 % of official; 100 steps (0.5 passes, 4 scored) at 100 %"
        in sentence
    )
    assert sentence.count("steps (") == 2
    heads = score_tables.length_sentence([replace(CELL, kind="head")], lambda c: None, settings, SPLITS)
    assert heads.startswith("**No network is fine-tuned here**")


def test_verdicts_are_counted() -> None:
    judged = pd.DataFrame({"verdict": ["reproduced", "not testable here", "reproduced"]})
    assert score_tables.verdict_sentence(judged) == "Of 3 claims: **2** reproduced; **1** not testable here."


def test_claims_with_and_without_a_number_of_ours_are_all_there_once() -> None:
    rows = scored(CELL, {"honest": 0.9}) + scored(replace(CELL, fraction=0.01), {"honest": 0.88})
    table = pd.DataFrame(rows).assign(n_patients=70, step=1, reason="")
    judged = judge(read_claims(), table, synthetic=False, comparable=True)
    tested, others = (score_tables.claims_table(judged, SPLITS, (), tested=flag) for flag in (True, False))
    assert len(tested) > 0
    assert len(tested) + len(others) == len(judged)
    assert (tested["ours"] != "").all()
    assert (others["reason"] != "").all()


def test_every_number_beside_a_claim_links_to_a_page_that_is_made() -> None:
    count = {"outcome": "stemi", "split": "official", "part": "test", "metric": "n_records", "value": 70}
    counts = pd.DataFrame([count]).assign(n=70)
    scores = pd.DataFrame(scored(replace(CELL, fraction=0.01), {"honest": 0.88}))
    scores = scores.assign(n_patients=70, step=1, reason="")
    judged = judge(read_claims(), scores, synthetic=False, comparable=True, counts=counts, split="official")
    for pages in ({"01_cohorts", "06_results"}, {"06_results"}):
        tested: Any = score_tables.claims_table(judged, SPLITS, pages, tested=True)
        assert {page.partition(".")[0] for page in tested.page} == pages


def test_a_table_is_shown_whole() -> None:
    table = Table({"text": ["word " * 40] * 100})
    html = table._repr_html_()
    assert html.count("<tr") == 101
    assert "..." not in html
    assert isinstance(table.assign(more=1), Table)
    assert pd.get_option("display.max_colwidth") == 50


def test_a_table_without_rows_says_so() -> None:
    assert Table(pd.DataFrame({"AUROC": []}))._repr_html_() == f"<p>{NO_ROWS}</p>"


def test_a_number_and_its_interval_stay_on_one_line() -> None:
    shown = Table({"AUROC": ["0.74 (0.69-0.78); 0.77 ± 0.02 over 20 runs", "not estimable (no run)"]})
    kept = re.findall(r'<span style="white-space: nowrap">(.*?)</span>', shown._repr_html_())
    assert kept == ["0.74 (0.69-0.78)", "0.77 ± 0.02"]


def test_a_cell_that_names_a_page_is_a_link_and_no_other_text_is() -> None:
    pages = ["08_saliency.html", "01_cohorts.html#who-is-in-which-part", "see 08_saliency.html", "<b>", ""]
    html = Table({"page": pages})._repr_html_()
    assert '<td><a href="08_saliency.html">08_saliency</a></td>' in html
    assert '<td><a href="01_cohorts.html#who-is-in-which-part">01_cohorts</a></td>' in html
    assert html.count("<a ") == 2
    assert "&lt;b&gt;" in html


# --- evidence ---


def test_pixels_of_a_sign_lie_on_the_ink_of_its_leads(cohort: Cohort) -> None:
    filters, image = FilterSettings(), ImageSettings()
    rows = np.flatnonzero(cohort.manifest.stemi == 1)[:2].tolist()
    healthy = int(np.flatnonzero(cohort.manifest.stemi == 0)[0])
    pixels = sign_pixels(cohort, [*rows, healthy], "stemi", filters, image)
    samples = sign_samples(cohort, [*rows, healthy], "stemi")
    assert pixels is not None
    assert samples is not None
    assert pixels[:2].any(axis=(1, 2)).all()
    assert not pixels[2].any()
    assert not samples[2].any()
    assert samples[:2].any(axis=(1, 2)).all()
    record = cohort.read(rows[0])
    waveform = preprocess(record.select(LEADS_8), record.sampling_rate, filters)
    leads, times = np.nonzero(samples[0, :, : filters.n_samples])  # the same rate: sample k is sample k
    y, x = lead_time_to_pixel(leads, (times + 0.5) / filters.n_samples, image, waveform[leads, times])
    inside = (y >= 0) & (y <= image.size - 1)
    assert pixels[0][np.rint(y[inside]).astype(int), np.rint(x[inside]).astype(int)].all()
