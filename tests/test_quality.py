"""Quality: each fault made by hand is found, by its name and no other; real recordings have few."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecglib.errors import EcglibError
from ecglib.quality import DOUBTFUL, FAULTS, UNUSABLE, QualitySettings, faults, measure, usable
from ecglib.records import LEADS_8, LEADS_12, LIMB_LEADS, Record, derive_limb_leads, read_wfdb

DEFAULT = QualitySettings()
PTBXL_UNIT_MV = 0.001
ROUNDING = 1.5  # of three leads in whole units, that of II and I counting in full and by half


def ecg(seed: int = 0, rate: int = 500, leads: tuple[str, ...] = LEADS_12) -> Record:
    """Ten seconds of beats with noise, in whole microvolts as recorders store them."""
    rng = np.random.default_rng(seed)
    phase = (np.arange(10 * rate) / rate + rng.uniform(0, 0.8)) % 0.8
    qrs, wave = np.exp(-(((phase - 0.3) / 0.015) ** 2)), np.exp(-(((phase - 0.6) / 0.05) ** 2))
    made = rng.uniform(0.5, 1.2, (8, 1)) * qrs + rng.uniform(0, 0.4, (8, 1)) * wave
    made += rng.normal(0, 0.02, made.shape) + rng.uniform(-0.2, 0.2, (8, 1))
    by_lead = dict(zip(LEADS_8, made, strict=True))
    by_lead |= derive_limb_leads(by_lead["I"], by_lead["II"])
    waveform = np.stack([by_lead[lead] for lead in leads]).round(3).astype(np.float32)
    return Record(waveform, leads, rate, f"made {seed}")


def changed(record: Record, change: Callable[[np.ndarray], object]) -> Record:
    """The record with its waveform changed in place."""
    waveform = record.waveform.copy()
    change(waveform)
    return replace(record, waveform=waveform)


seeds, rates, leads = st.integers(0, 1000), st.sampled_from([100, 250, 500, 1000]), st.sampled_from(LEADS_8)


@given(seeds, rates, st.sampled_from([LEADS_12, LEADS_8, tuple(lead.lower() for lead in LEADS_12[::-1])]))
def test_clean_records_have_no_fault(seed: int, rate: int, order: tuple[str, ...]) -> None:
    record = ecg(seed, rate)
    rows = [next(k for k, lead in enumerate(LEADS_12) if lead.lower() == name.lower()) for name in order]
    assert faults(replace(record, waveform=record.waveform[rows], leads=order), DEFAULT) == ()


@given(seeds, rates, leads)
def test_a_lead_that_is_not_stored_is_missing(seed: int, rate: int, lead: str) -> None:
    kept = tuple(name for name in LEADS_8 if name != lead)
    assert faults(ecg(seed, rate, kept), DEFAULT) == ("missing lead",)
    assert measure(ecg(seed, rate, kept), DEFAULT).missing_leads == 1


@given(seeds, leads, st.integers(0, 4999), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_one_missing_sample_is_found_wherever_it_is(seed: int, lead: str, at: int, value: float) -> None:
    spoilt = changed(ecg(seed), lambda w: w.__setitem__((LEADS_12.index(lead), at), value))
    assert faults(spoilt, DEFAULT) == ("missing samples",)
    assert measure(spoilt, DEFAULT).missing_samples == 1


@given(seeds, rates, st.integers(0, 10_000))
def test_a_record_is_too_short_if_it_does_not_fill_the_window(seed: int, rate: int, n_samples: int) -> None:
    record = changed(ecg(seed, rate), lambda w: None)
    cut = replace(record, waveform=record.waveform[:, :n_samples])
    assert ("too short" in faults(cut, DEFAULT)) == (n_samples < 5 * rate)
    assert ("too short" in faults(cut, DEFAULT, window_s=2.5)) == (n_samples < 2.5 * rate)


@given(seeds, leads, st.floats(-5, 5), st.integers(0, 4500))
def test_a_lead_that_stands_still_is_flat(seed: int, lead: str, level: float, start: int) -> None:
    row = LEADS_12.index(lead)
    record = ecg(seed, leads=LEADS_8)
    whole = changed(record, lambda w: w.__setitem__(LEADS_8.index(lead), level))
    assert "flat lead" in faults(whole, DEFAULT)
    assert "all leads flat" not in faults(whole, DEFAULT)
    held = changed(ecg(seed), lambda w: w[row, start : start + 400].fill(w[row, start]))
    assert ("flat lead" in faults(held, DEFAULT)) == (start <= 4700)
    assert measure(held, DEFAULT).still_s == pytest.approx(min(400, 5000 - start) / 500, abs=0.02)


@given(seeds, leads)
def test_a_lead_with_nothing_but_noise_is_flat(seed: int, lead: str) -> None:
    def fade(waveform: np.ndarray) -> None:
        waveform[LEADS_8.index(lead)] *= 0.01

    assert faults(changed(ecg(seed, leads=LEADS_8), fade), DEFAULT) == ("flat lead",)


@given(seeds, rates)
def test_all_leads_flat_in_the_drawn_part_cannot_be_drawn(seed: int, rate: int) -> None:
    silent = changed(ecg(seed, rate), lambda w: w[:, : 5 * rate].fill(0))
    assert faults(silent, DEFAULT) == ("all leads flat",)
    assert not usable(faults(silent, DEFAULT))
    later = changed(ecg(seed, rate), lambda w: w[:, 5 * rate :].fill(0))
    assert faults(later, DEFAULT) == ("flat lead",)


@given(seeds, rates, leads, st.sampled_from([-1, 1]))
def test_a_clipped_lead_is_saturated(seed: int, rate: int, lead: str, sign: int) -> None:
    def clip(waveform: np.ndarray) -> None:
        trace = waveform[LEADS_8.index(lead)]
        trace[:] = sign * np.minimum(20 * (trace - np.median(trace)), 1.2)

    assert faults(changed(ecg(seed, rate, LEADS_8), clip), DEFAULT) == ("saturated",)


@given(seeds, leads, st.floats(12, 30), st.integers(1, 4998))
def test_a_spike_beyond_what_hearts_make_is_implausible(seed: int, lead: str, mv: float, at: int) -> None:
    def spike(waveform: np.ndarray) -> None:
        trace = waveform[LEADS_8.index(lead)]
        trace[at] = trace.min() + mv + 0.001

    spoilt = changed(ecg(seed, leads=LEADS_8), spike)
    assert faults(spoilt, DEFAULT) == ("amplitude",)
    assert measure(spoilt, DEFAULT).amplitude_mv == pytest.approx(mv, abs=0.01)


@given(seeds, st.sampled_from(LIMB_LEADS), st.floats(0.06, 3), st.integers(0, 4999))
def test_a_limb_lead_that_breaks_einthovens_law_is_found(seed: int, lead: str, mv: float, at: int) -> None:
    def shift(waveform: np.ndarray) -> None:
        waveform[LEADS_12.index(lead), at] += mv

    spoilt = changed(ecg(seed), shift)
    assert faults(spoilt, DEFAULT) == ("Einthoven",)
    assert measure(spoilt, DEFAULT).einthoven_mv == pytest.approx(mv, abs=0.002)


def test_swapped_limb_leads_break_einthovens_law() -> None:
    record = ecg()
    swapped = replace(record, leads=("II", "I", *LEADS_12[2:]))
    assert faults(swapped, DEFAULT) == ("Einthoven",)
    assert (
        faults(replace(record, waveform=record.waveform[[0, 1, *range(6, 12)]], leads=LEADS_8), DEFAULT) == ()
    )
    assert np.isnan(measure(ecg(leads=LEADS_8), DEFAULT).einthoven_mv)


def test_several_faults_come_in_the_order_of_the_list() -> None:
    def spoil(waveform: np.ndarray) -> None:
        waveform[0, 0], waveform[2], waveform[7, 9] = np.nan, 0, 40

    record = changed(ecg(), spoil)
    assert faults(record, DEFAULT) == ("missing samples", "amplitude", "Einthoven")
    assert [usable((reason,)) for reason in FAULTS] == [False] * len(UNUSABLE) + [True] * len(DOUBTFUL)
    assert usable(())


@pytest.mark.parametrize("n_samples", [0, 1, 2, 3])
@pytest.mark.parametrize("names", [LEADS_12, ("I", "V9"), ("X",)])
def test_stumps_of_records_have_faults_and_no_errors(n_samples: int, names: tuple[str, ...]) -> None:
    stump = Record(np.zeros((len(names), n_samples), np.float32), names, 500, "stump")
    found = faults(stump, DEFAULT)
    assert "too short" in found
    assert ("missing lead" in found) == (names != LEADS_12)
    empty = replace(stump, waveform=np.full(stump.waveform.shape, np.nan, np.float32))
    assert ("missing samples" in faults(empty, DEFAULT)) == (n_samples > 0 and names != ("X",))


@pytest.mark.parametrize("name", list(QualitySettings.__dataclass_fields__))
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_thresholds_must_be_above_zero(name: str, value: float) -> None:
    with pytest.raises(EcglibError, match=f"{name}="):
        QualitySettings(**{name: value})


# --- real recordings ---


def test_ptbxls_limb_leads_are_those_of_einthoven_within_rounding(ptbxl_subset: Path) -> None:
    """Of all 21,799 records 21,715 are within 1.5 units (0.0015 mV); the worst is at 5,872, a spike."""
    table = pd.read_csv(ptbxl_subset / "ptbxl_database.csv")
    measured = [measure(read_wfdb(ptbxl_subset / name), DEFAULT) for name in table.filename_lr[::8]]
    units = np.array([one.einthoven_mv for one in measured]) / PTBXL_UNIT_MV
    assert len(units) == 150
    assert np.quantile(units, 0.97) < ROUNDING + 0.01
    assert [one for one in measured if one.missing_samples or one.missing_leads or one.lacking_s] == []


def test_both_rates_of_ptbxl_are_without_fault(shared_data: Path) -> None:
    headers = sorted((shared_data / "ptb-xl-500hz").rglob("*.hea"))
    assert len(headers) == 40
    for header in headers:
        record = read_wfdb(header)
        assert faults(record, DEFAULT) == (), header.name
        assert measure(record, DEFAULT).einthoven_mv < (ROUNDING + 0.01) * PTBXL_UNIT_MV


def test_ludbs_samples_obey_einthoven_but_its_headers_do_not(shared_data: Path) -> None:
    """LUDB's gains give each lead a range of 1 mV: its samples are right, its volts are not."""
    headers = sorted((shared_data / "ludb" / "data").glob("*.hea"))
    assert len(headers) == 100
    for header in headers:
        digital = np.fromfile(header.with_suffix(".dat"), "<i2").reshape(-1, 12).T.astype(float)
        derived = derive_limb_leads(digital[0], digital[1])
        residual = max(np.abs(digital[LEADS_12.index(lead)] - derived[lead]).max() for lead in LIMB_LEADS)
        assert residual == 0.5  # units: halves that were rounded
        record = read_wfdb(header)
        assert np.ptp(record.waveform, axis=1) == pytest.approx(1.0, abs=0.002)
        assert "Einthoven" in faults(record, DEFAULT)
