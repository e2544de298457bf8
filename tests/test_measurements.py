"""Classical measurements: known values on drawn ECGs, cardiologists' marks on real ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import wfdb
from hypothesis import given, settings
from hypothesis import strategies as st

from ecglib.beats import find_r_peaks
from ecglib.criteria import CRITERIA, criteria_met
from ecglib.errors import EcglibError
from ecglib.measurements import MEASUREMENTS, delineate, measure, measure_many
from ecglib.records import LEADS_8, LEADS_12, derive_limb_leads, read_wfdb

R = np.array([0.8, 1.0, 0.2, 0.4, 0.7, 1.3, 1.4, 1.1])  # mV, by lead of LEADS_8
S = np.array([0.0, 0.0, 0.9, 1.3, 0.9, 0.5, 0.0, 0.0])
T = np.array([0.2, 0.3, 0.05, 0.4, 0.4, 0.35, 0.3, 0.25])


def ecg(rate: float = 60.0, st_mv: float = 0.0, sampling_rate: float = 500.0) -> np.ndarray:
    """A drawn ECG, float32 (8, 10 s): R at 0, S 45 ms later, T at 270 ms, ST raised by st_mv in V2-V4."""
    time = np.arange(int(10 * sampling_rate)) / sampling_rate
    since = time - np.arange(0.4, 10.0, 60 / rate)[:, None]

    def bump(delay: float, width: float) -> np.ndarray:
        return np.exp(-0.5 * ((since - delay) / width) ** 2).sum(axis=0)

    plateau = ((since > 0.075) & (since < 0.3)).sum(axis=0)
    raised = st_mv * np.isin(LEADS_8, ["V2", "V3", "V4"])
    waves = R[:, None] * bump(0, 0.01) - S[:, None] * bump(0.045, 0.01) + T[:, None] * bump(0.27, 0.03)
    return (waves + raised[:, None] * plateau).astype(np.float32)


def test_amplitudes_and_rate_of_a_drawn_ecg_are_measured_as_drawn() -> None:
    found = measure(ecg(rate=75), 500)
    assert list(found) == list(MEASUREMENTS)
    assert found["heart_rate_bpm"] == pytest.approx(75, abs=0.5)
    assert found["sokolow_lyon_mv"] == pytest.approx(0.9 + 1.4, abs=0.05)
    assert found["r_avl_mv"] == pytest.approx(0.8 - 1.0 / 2, abs=0.02)
    assert found["cornell_mv"] == pytest.approx(0.3 + 0.9, abs=0.05)
    assert found["t_lateral_mv"] == pytest.approx(np.mean([0.2, 0.2 - 0.15, 0.3, 0.25]), abs=0.02)
    assert found["qrs_axis_deg"] == pytest.approx(
        np.degrees(np.arctan2((1.0 - 0.4) * 2 / 3**0.5, 0.8)), abs=2
    )
    # A Gaussian leaves the line about 2.5 widths from its centre: R from -25 ms, S to 45 + 25 ms.
    assert found["qrs_duration_ms"] == pytest.approx(95, abs=20)
    assert found["qt_ms"] == pytest.approx(25 + 270 + 2 * 30, abs=25)
    assert found["qtc_ms"] == pytest.approx(found["qt_ms"] / (60 / 75) ** (1 / 3), rel=0.01)


def test_raised_st_is_measured_in_its_leads() -> None:
    found = measure(ecg(st_mv=0.3), 500)
    assert found["st_anterior_mv"] == pytest.approx(0.75 * 0.3, abs=0.05)
    assert abs(found["st_inferior_mv"]) < 0.03


@settings(max_examples=10)
@given(st.floats(0.4, 3.0), st.floats(-2.0, 2.0))
def test_amplitudes_grow_with_the_gain_and_ignore_an_offset(gain: float, offset: float) -> None:
    plain, changed = measure(ecg(), 500), measure(gain * ecg() + np.float32(offset), 500)
    for name in MEASUREMENTS:
        factor = gain if name.endswith("_mv") else 1.0
        assert changed[name] == pytest.approx(factor * plain[name], rel=0.03, abs=0.01 * max(gain, 1))


def test_twelve_leads_say_the_same_as_their_eight() -> None:
    eight = ecg()
    leads = dict(zip(LEADS_8, eight, strict=True)) | derive_limb_leads(eight[0], eight[1])
    assert measure(np.stack([leads[lead] for lead in LEADS_12]), 500) == measure(eight, 500)


def test_both_sampling_rates_say_much_the_same() -> None:
    slow, fast = measure(ecg(sampling_rate=100), 100), measure(ecg(), 500)
    assert slow["heart_rate_bpm"] == pytest.approx(fast["heart_rate_bpm"], abs=1)
    assert slow["qrs_duration_ms"] == pytest.approx(fast["qrs_duration_ms"], abs=16)
    assert slow["sokolow_lyon_mv"] == pytest.approx(fast["sokolow_lyon_mv"], rel=0.15)


def test_a_flat_line_a_hole_and_a_wrong_shape_are_refused() -> None:
    hole = ecg()
    hole[3, 17] = np.nan
    for waveform, reason in ((np.zeros((8, 5000)), "no two heart"), (hole, "NaN"), (hole[:5], "8 or 12")):
        with pytest.raises(EcglibError, match=reason):
            measure(waveform, 500)


def test_criteria_follow_the_drawing() -> None:
    met = criteria_met(ecg(st_mv=0.3), 500, 60, "male")
    assert list(met) == list(CRITERIA)
    assert met["ST elevation"]
    assert not criteria_met(ecg(st_mv=0.05), 500, 60, "male")["ST elevation"]
    assert criteria_met(1.7 * ecg(), 500, 60, "male")["Sokolow-Lyon"]
    assert not criteria_met(ecg(), 500, 60, "male")["Sokolow-Lyon"]


def test_boundaries_and_rates_agree_with_cardiologists(shared_data: Path) -> None:
    errors: Any = pd.DataFrame(
        [_against_marks(path) for path in sorted((shared_data / "ludb").rglob("*.hea"))[::4]]
    )
    assert len(errors) > 20
    assert errors.rate.abs().median() < 0.5
    assert errors.peak_missed.mean() < 0.02
    # The marks are the earliest and latest of any lead, so that they lie outside ours.
    assert -20 < errors.duration_ms.median() < 5
    assert errors.duration_ms.abs().quantile(0.9) < 25
    measured_ms = errors.marked_ms + errors.duration_ms
    assert measured_ms.corr(errors.marked_ms, method="spearman") > 0.6


def _against_marks(header: Path) -> dict[str, float]:
    base = header.with_suffix("")
    record = read_wfdb(base)
    found = delineate(record.select(LEADS_12), record.sampling_rate)
    marks = [_marked_qrs(base, lead) for lead in LEADS_12]
    peaks = marks[1][:, 1]
    spans = []
    for peak in peaks:  # beside the outermost lead: one mark gone astray would decide alone
        near = np.array([row for lead in marks for row in lead if abs(row[1] - peak) < 75])
        if len(near) >= 8:
            spans.append(np.percentile(near[:, 2], 88) - np.percentile(near[:, 0], 12))
    own = find_r_peaks(record.select(LEADS_8), record.sampling_rate)
    marked_ms = 2 * float(np.median(spans)) if spans else np.nan
    return {
        "rate": found.rate_bpm - 60 * 500 / float(np.median(np.diff(peaks))),
        "peak_missed": float(np.mean([np.abs(own - peak).min() > 75 for peak in peaks])),
        "marked_ms": marked_ms,
        "duration_ms": found.qrs_duration_ms - marked_ms,
    }


def _marked_qrs(base: Path, lead: str) -> np.ndarray:
    """Start, peak and end of each QRS that is marked whole in a lead: samples (n, 3)."""
    marks: Any = wfdb.rdann(str(base), lead.lower())
    at = np.flatnonzero(np.array(marks.symbol) == "N")
    at = at[(at > 0) & (at < len(marks.symbol) - 1)]
    return np.stack([marks.sample[at - 1], marks.sample[at], marks.sample[at + 1]], axis=1)


def test_real_100_hz_recordings_are_measured_plausibly(ptbxl_subset: Path) -> None:
    headers = sorted((ptbxl_subset / "records100").rglob("*.hea"))[:150]
    records = [read_wfdb(path) for path in headers]
    table: Any = measure_many([record.select(LEADS_12) for record in records], 100)
    assert table.drop(columns=["qt_ms", "qtc_ms"]).notna().all(axis=None)
    assert table.qt_ms.isna().mean() < 0.05
    assert 60 < table.heart_rate_bpm.median() < 85
    assert 80 < table.qrs_duration_ms.median() < 115
    assert 360 < table.qtc_ms.median() < 450
    assert table.qrs_duration_ms.between(60, 220).mean() > 0.97
