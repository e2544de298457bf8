"""Each finding of the audit is recomputed from the paper's numbers and agrees with an independent count."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wasserstein_distance

from ecglib import audit, audit_figures
from ecglib.claims import read_claims
from ecglib.datasets import REMOVED_IN_1_0_3
from ecglib.domain_shift import ShiftSettings, domain_shift
from ecglib.errors import EcglibError
from ecglib.image import ImageSettings
from ecglib.intervals import hanley_mcneil_error


def cohort_of(patient_ids: list[str], external: bool = False) -> Any:
    return SimpleNamespace(manifest=pd.DataFrame({"patient_id": patient_ids, "external": external}))


# --- the split ---


def test_ptbxl_gives_the_papers_test_part_with_ids_as_text_only(ptbxl_table: pd.DataFrame) -> None:
    table = ptbxl_table.loc[~ptbxl_table.index.isin(REMOVED_IN_1_0_3)]
    counts = audit.split_counts(cohort_of(table.patient_id.tolist()))
    assert counts.loc["text"].tolist() == [17_447, 4_352, 21_799]
    assert counts.loc["number"].tolist() == [17_423, 4_376, 21_799]
    assert counts.loc["printed"].tolist() == [17_449, 4_352, 21_801]


def test_ids_that_are_no_numbers_are_numbered_and_external_ecgs_take_no_part() -> None:
    ids = [f"A{number}" for number in range(200) for _ in range(1 + number % 3)]
    counts = audit.split_counts(cohort_of(ids))
    assert (counts.loc[["text", "number"], "sum"] == len(ids)).all()
    assert counts.loc["text", "test"] != counts.loc["number", "test"]
    cohort = cohort_of([*ids, "B1", "B2"])
    cohort.manifest.loc[len(ids) :, "external"] = True
    assert audit.split_counts(cohort).equals(counts)
    assert "paper prints" in " ".join(audit.split_table(cohort).index)


# --- selection and intervals ---


def test_the_standard_error_is_that_of_exponential_scores_by_simulation() -> None:
    """For exponential scores Hanley and McNeil's formula is exact."""
    rng, value = np.random.default_rng(0), 0.8
    positive = rng.exponential(value / (1 - value), (4000, 20, 1))
    found = (positive > rng.exponential(1.0, (4000, 1, 60))).mean(axis=(1, 2))  # AUROC of each simulation
    assert found.mean() == pytest.approx(value, abs=0.005)
    assert found.std() == pytest.approx(float(hanley_mcneil_error(value, 20, 60)), rel=0.05)


def test_the_expected_gain_is_that_of_the_best_of_k_normals() -> None:
    gains = audit.expected_gain(3, 0.02, (0.0, 0.75, 1.0))
    wanted = 0.02 * np.array([0, 1 / np.sqrt(np.pi), 3 / (2 * np.sqrt(np.pi))])
    np.testing.assert_allclose(gains[0.0], wanted, atol=4e-4)
    np.testing.assert_allclose(gains[0.75], gains[0.0] / 2, rtol=1e-12)
    assert (gains[1.0] == 0).all(), "what epochs have in common cannot be gained by choosing"


def test_the_gain_table_is_at_the_papers_two_numbers_of_epochs() -> None:
    gains = audit.gains()
    table = audit.gain_table(gains)
    assert list(table.columns) == ["best of 20 epochs", "best of 30 epochs"]
    assert table.loc[0.5, "best of 20 epochs"] == f"+{gains.loc[20, 0.5]:.3f}"


def test_every_printed_interval_is_held_against_the_width_that_its_patients_allow() -> None:
    widths = audit.interval_widths().set_index("id")
    claims = read_claims().set_index("id")
    assert set(widths.index) == set(claims.index[claims["paper_low"].notna()])
    stemi: Any = widths.loc["auroc-stemi-1pct-test-heartbeit"]
    assert (stemi["n"], stemi["n_positive"]) == (4352, 235)
    assert stemi["needed"] == pytest.approx(0.057, abs=5e-4)
    assert stemi["of_mean"] == pytest.approx(stemi["needed"] / np.sqrt(500))
    assert stemi["at_most"] == pytest.approx(0.02)
    assert set(widths.index[widths["bounded"]]) == {i for i in widths.index if "external" in i}


def test_where_prevalence_is_not_printed_the_width_is_the_least_that_any_prevalence_allows() -> None:
    row: Any = audit.interval_widths().set_index("id").loc["auroc-low_lvef-1pct-external-heartbeit"]
    for n_positive in (10, 370, 740, 1100):
        width = 2 * 1.959964 * hanley_mcneil_error(0.87, n_positive, 1480 - n_positive)
        assert float(row["needed"]) <= float(width) + 1e-9
    table = audit.interval_table(audit.interval_widths())
    assert table["width needed"].str.startswith("at least").sum() == 4
    assert not table.isna().to_numpy().any()


# --- baseline, learning rate ---


def test_a_normalised_page_is_what_it_is_by_hand() -> None:
    pixels = np.array([[0, 255], [255, 255]], np.uint8)
    table = audit.normalisation_table(pixels)
    assert table.loc[("0.5 and 0.5, as BEiT learnt", "red")].tolist() == ["-1.00", "1.00", "0.50", "0.87"]
    red = table.loc[("ImageNet's mean and std", "red")]
    assert red[["ink (0)", "paper (255)"]].tolist() == ["-2.12", "2.25"]


def test_the_schedule_overrides_the_optimisers_rate() -> None:
    rates = audit.learning_rates(200)
    assert len(rates) == 200
    assert rates.rate.iloc[0] == pytest.approx(1e-3 / 25)
    assert rates.rate.max() == pytest.approx(1e-3)
    assert rates.rate.iloc[-1] == pytest.approx(4e-9)
    assert 3e-4 not in rates.rate.to_numpy()
    text = " ".join(audit.learning_rate_table(rates).to_numpy().ravel())
    assert all(word in text for word in ("3e-04 to 1e-03", "4e-05, then 1e-03, then 4e-09", "30", "20"))
    assert "22k" in audit.baseline_table().to_string()


# --- distance and maps ---


def test_ink_brings_a_page_nearer_and_none_is_the_blank_page_of_domain_shift() -> None:
    photographs = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    table = audit.ink_table(photographs, (0, 5, 10))
    column = table["mean distance (grey levels)"].astype(float)
    blank, _ = domain_shift(photographs, photographs, ShiftSettings(n_draws=2))
    assert column["0 %"] == round(blank.set_index("combination").loc["blank-natural", "mean"], 1)
    page = np.repeat([0, 255], [5, 95])
    wanted = np.mean([wasserstein_distance(page, photograph.ravel()) for photograph in photographs])
    assert column["5 %"] == pytest.approx(wanted, abs=0.051)
    assert column["10 %"] < column["5 %"] < column["0 %"]
    assert table.loc["5 %", "the paper's, for ECGs"] == "128.44"


def test_a_cell_of_a_map_covers_what_can_be_worked_out_by_hand() -> None:
    table = audit.resolution_table()
    assert table.iloc[0].tolist() == ["14 x 14", "357", "1.75", "0.25"]
    assert table.iloc[1].tolist() == ["7 x 7", "714", "0.88", "0.13"]


# --- numbers that cannot all be right ---


def test_the_papers_slips_are_found_and_what_fits_is_said_to_fit() -> None:
    verdicts: Any = audit.consistency_table()["verdict"]
    assert verdicts["STEMI: fine-tuning and test make all"] == "cannot both be right: +2"
    assert verdicts["Internal test: LVEF and HCM"].startswith("equal")
    odd = verdicts[verdicts == "not of this value"]
    assert [name.split(",")[0] for name in odd.index] == ["AUPRC of HeartBEiT", "AUPRC of ViT-B/16"]
    assert (verdicts[verdicts.index.str.contains("HeartBEiT over")] == "agree").sum() == 3


def test_the_verdicts_follow_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    claims = read_claims().set_index("id")
    claims.loc["cohort-stemi-fine_tune-records", "paper_value"] = 17_447
    claims.loc["cohort-hcm-test-records", "paper_value"] = 20_000
    claims.loc["auroc-hcm-1pct-test-vit_b16", "paper_value"] = 0.71
    claims.loc["auprc-stemi-1pct-test-heartbeit", "paper_value"] = 0.61
    monkeypatch.setattr(audit, "read_claims", lambda: claims.reset_index())
    verdicts = audit.consistency_table()["verdict"]
    assert verdicts["STEMI: fine-tuning and test make all"] == "agree"
    assert verdicts["Internal test: LVEF and HCM"] == "they differ"
    assert verdicts["HCM: HeartBEiT over ViT-B/16"] == "cannot both be right"
    assert verdicts["AUPRC of HeartBEiT, STEMI, and its interval"] == "agree"


# --- average precision ---


# --- files and figures ---


def test_a_spoilt_file_of_facts_gives_one_clear_line(tmp_path: Any) -> None:
    path = tmp_path / "audit_facts.csv"
    with pytest.raises(EcglibError, match=r"restore book/audit_facts\.csv from git"):
        audit.read_facts(path)
    path.write_text("name,value\na,1\n", encoding="utf-8")
    with pytest.raises(EcglibError, match="lacks the column source"):
        audit.read_facts(path)
    path.write_text("name,value,source,statement\na,1,s,t\na,2,s,t\n", encoding="utf-8")
    with pytest.raises(EcglibError, match="a stands twice"):
        audit.read_facts(path)


def test_figures_name_their_axes_and_draw_their_tables() -> None:
    gains, rates = audit.gains(), audit.learning_rates(50)
    axes: Any = audit_figures.expected_gains(gains).axes[0]
    assert axes.get_xlabel()
    assert axes.get_ylabel()
    np.testing.assert_allclose(axes.lines[0].get_ydata(), gains[0.0])
    drawn: Any = audit_figures.learning_rate(rates, audit.said_rates()).axes[0]
    np.testing.assert_allclose(drawn.lines[0].get_ydata(), rates.rate)
    size = ImageSettings().size
    maps: Any = audit_figures.cells(np.full((size, size), 255, np.uint8), audit.map_cells()).axes
    assert [len(ax.lines) for ax in maps] == [2 * 15, 2 * 8]
    names = pd.Index(["a", "b"])
    jaccard = pd.DataFrame([[1.0, 0.25], [0.25, 1.0]], index=names, columns=names)
    heat: Any = audit_figures.overlap(jaccard).axes[0]
    assert [text.get_text() for text in heat.texts] == ["1.00", "0.25", "0.25", "1.00"]
