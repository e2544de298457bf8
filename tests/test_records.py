"""Reading WFDB records: held against wfdb to the bit, and against files that lie."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wfdb
from hypothesis import given
from hypothesis import strategies as st

from ecglib import records
from ecglib.errors import EcglibError
from ecglib.records import LEADS_8, LEADS_12, Record, derive_limb_leads, read_wfdb

HEADER = """syn 2 500 4
syn.dat 16 1000(0)/mV 16 0 -119 65436 0 I
syn.dat 16 200(10)/mV 16 0 30 100 0 II
# <age>: sechzig, für Umlaute
"""
SAMPLES = np.array([[-119, 19, 0, 0], [30, 20, 25, 25]])
MILLIVOLTS = [[-0.119, 0.019, 0, 0], [0.1, 0.05, 0.075, 0.075]]


def write_record(folder: Path, header: str = HEADER, samples: np.ndarray = SAMPLES) -> Path:
    (folder / "syn.hea").write_text(header, encoding="utf-8")
    (folder / "syn.dat").write_bytes(samples.T.astype("<i2").tobytes())
    return folder / "syn"


def physical_by_wfdb(path: Path) -> np.ndarray:
    record: Any = wfdb.rdrecord(str(path))
    return np.ascontiguousarray(record.p_signal.T, dtype=np.float32)


def real_headers(shared_data: Path) -> list[Path]:
    ptbxl = sorted((shared_data / "ptb-xl-500hz").rglob("*.hea"))
    return ptbxl + sorted((shared_data / "ludb" / "data").glob("*.hea"))[:20]


def refuse_wfdb(*_: object) -> Record:
    raise AssertionError("this record should be read by NumPy")


def test_numpy_and_wfdb_read_the_same_bits(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_read_by_wfdb", refuse_wfdb)
    headers = real_headers(shared_data)
    rates = set()
    for header in headers:
        record = read_wfdb(header)
        expected = physical_by_wfdb(header.with_suffix(""))
        assert record.waveform.dtype == np.float32
        assert record.waveform.tobytes() == expected.tobytes()
        rates.add((record.sampling_rate, record.waveform.shape))
    assert rates == {(100.0, (12, 1000)), (500.0, (12, 5000))}
    assert len(headers) == 60


def test_derived_limb_leads_agree_with_stored_ones(shared_data: Path) -> None:
    for header in sorted((shared_data / "ptb-xl-500hz").rglob("*.hea")):
        stored = read_wfdb(header)
        derived = Record(stored.select(LEADS_8), LEADS_8, stored.sampling_rate, stored.record_id)
        limb = ("III", "aVR", "aVL", "aVF")
        # The stored ones are whole microvolts, rounded or cut by the recorder: 1.5 at most in 160 leads.
        assert np.abs(stored.select(limb) - derived.select(limb)).max() < 0.0016
        np.testing.assert_array_equal(derived.select(["aVF"])[0], derived.select(LEADS_12)[5])


@given(st.lists(st.integers(-5000, 5000), min_size=4, max_size=40))
def test_limb_leads_obey_einthoven_and_goldberger(values: list[int]) -> None:
    lead_i, lead_ii = np.array(values[::2][: len(values) // 2]), np.array(values[1::2])
    limb = derive_limb_leads(lead_i, lead_ii)
    np.testing.assert_array_equal(lead_i + limb["III"], lead_ii)
    np.testing.assert_array_equal(limb["aVR"] + limb["aVL"] + limb["aVF"], np.zeros(len(lead_i)))
    np.testing.assert_array_equal(limb["aVL"] - limb["aVR"], 1.5 * lead_i)


def test_gain_baseline_and_names_are_read_from_the_header(tmp_path: Path) -> None:
    record = read_wfdb(write_record(tmp_path), patient_id="7")
    np.testing.assert_array_equal(record.waveform, np.array(MILLIVOLTS, np.float32))
    assert (record.leads, record.sampling_rate) == (("I", "II"), 500.0)
    assert (record.record_id, record.patient_id) == ("syn", "7")
    assert read_wfdb(tmp_path / "syn.hea", record_id="9").record_id == "9"


def test_microvolts_and_volts_become_millivolts(tmp_path: Path) -> None:
    path = write_record(tmp_path, HEADER.replace("1000(0)/mV", "1(0)/uV").replace("200(10)/mV", "2e5(10)/V"))
    np.testing.assert_allclose(read_wfdb(path).waveform, MILLIVOLTS, rtol=1e-6)


def test_missing_samples_are_nan_as_in_wfdb(tmp_path: Path) -> None:
    samples = np.array([[-119, -32768, 0, 0], [30, 20, 25, 25]])
    path = write_record(tmp_path, HEADER.replace("65436", str(samples[0].sum() % 65536)), samples)
    waveform = read_wfdb(path).waveform
    np.testing.assert_array_equal(waveform, physical_by_wfdb(path))
    assert np.isnan(waveform).tolist() == [[False, True, False, False], [False] * 4]


@pytest.mark.parametrize("fmt", ["212", "24", "80"])
def test_other_formats_are_read_through_wfdb(tmp_path: Path, fmt: str) -> None:
    signal = np.round(np.random.default_rng(0).uniform(-0.5, 0.5, (50, 2)), 2)
    wfdb.wrsamp("other", 250, ["mV", "mV"], ["I", "V1"], signal, fmt=[fmt, fmt], write_dir=str(tmp_path))
    record = read_wfdb(tmp_path / "other")
    assert record.waveform.tobytes() == physical_by_wfdb(tmp_path / "other").tobytes()
    assert (record.leads, record.sampling_rate) == (("I", "V1"), 250.0)


def test_a_file_for_each_lead_is_read_through_wfdb(tmp_path: Path) -> None:
    path = write_record(tmp_path, HEADER.replace("syn.dat 16 200", "ii.dat 16 200"))
    (tmp_path / "syn.dat").write_bytes(SAMPLES[0].astype("<i2").tobytes())
    (tmp_path / "ii.dat").write_bytes(SAMPLES[1].astype("<i2").tobytes())
    np.testing.assert_allclose(read_wfdb(path).waveform, MILLIVOLTS, rtol=1e-6)


def test_several_segments_are_read_through_wfdb(tmp_path: Path) -> None:
    write_record(tmp_path)
    (tmp_path / "whole.hea").write_text("whole/2 2 500 8\nsyn 4\nsyn 4\n")
    np.testing.assert_array_equal(
        read_wfdb(tmp_path / "whole").waveform, np.tile(read_wfdb(tmp_path / "syn").waveform, 2)
    )


def test_wfdb_route_holds_checksums_too(tmp_path: Path) -> None:
    wfdb.wrsamp(
        "other", 250, ["mV"], ["I"], np.arange(40.0)[:, None] / 50, fmt=["212"], write_dir=str(tmp_path)
    )
    header = tmp_path / "other.hea"
    fields = header.read_text().splitlines()[1].split()
    fields[6] = str(int(fields[6]) + 1)
    header.write_text(f"other 1 250 40\n{' '.join(fields)}\n")
    with pytest.raises(EcglibError, match="checksum"):
        read_wfdb(header)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (HEADER.replace("500 4", "500 5"), r"16 bytes, but its header says 2 leads x 5 samples"),
        (HEADER.replace("500 4", "500 3"), r"16 bytes, but its header says 2 leads x 3 samples"),
        (HEADER.replace("500 4", "500 0"), r"syn\.dat: 16 bytes"),
        (HEADER.replace("syn 2", "syn 3"), r"says 3 leads but describes 2"),
        (HEADER.replace("syn 2", "syn 1"), r"says 1 leads but describes 2"),
        (HEADER.replace("syn 2", "syn 0"), r"says 0 leads"),
        (HEADER.replace("65436", "65437"), r"lead I has checksum 65436 but its header says 65437"),
        (HEADER.replace("0 30 100", "0 29 100"), r"lead II starts with 30 but its header says 29"),
        (HEADER.replace("0 30 100", "0 31 100"), r"lead II starts with 30 but its header says 31"),
        (HEADER.replace("syn.dat", "gone.dat"), r"gone\.dat: cannot be read"),
        (HEADER.replace("syn.dat", "../syn.dat"), r"wfdb cannot read"),
        (HEADER.replace("/mV", "/mmHg"), r"unit 'mmHg'"),
        (HEADER.replace("200(10)", "0(10)"), r"gains from 0 to 1000"),
        (HEADER.replace(" 200(10)/mV 16 0 30 100 0 II", ""), r"no gain in 'syn\.dat 16'"),
        (HEADER.replace("16 1000(0)/mV", "16x1 0(0)/mV"), r"no gain"),
        (HEADER.replace("0 II", "0 i"), r"a name of its own"),
        (HEADER.replace("2 500 4", "2 0 4"), r"sampling rate 0.0 Hz"),
        ("", r"not a WFDB header"),
        ("\x00\x07\x1b[31m\xff" * 50, r"not a WFDB header"),
        ("PK\x03\x04 2 500 4", r"not a WFDB header"),
    ],
)
def test_a_header_that_lies_is_one_clear_error(tmp_path: Path, header: str, message: str) -> None:
    path = write_record(tmp_path, header)
    with pytest.raises(EcglibError, match=message) as caught:
        read_wfdb(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("cut", [1, 2, 1000, 23999])
def test_a_truncated_real_file_is_refused(shared_data: Path, tmp_path: Path, cut: int) -> None:
    header = sorted((shared_data / "ptb-xl-500hz").rglob("*_lr.hea"))[0]
    (tmp_path / header.name).write_bytes(header.read_bytes())
    data = header.with_suffix(".dat").read_bytes()
    (tmp_path / header.name).with_suffix(".dat").write_bytes(data[:-cut])
    with pytest.raises(EcglibError, match=r"12 leads x 1000 samples = 24000 bytes"):
        read_wfdb(tmp_path / header.name)


@given(st.binary(max_size=300))
def test_binary_junk_is_never_another_error(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    header = tmp_path_factory.getbasetemp() / "junk.hea"
    header.write_bytes(junk)
    with pytest.raises(EcglibError):
        read_wfdb(header)


def _remove(path: Path) -> None:
    path.unlink()


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [_remove, _make_folder])
@pytest.mark.parametrize("suffix", [".hea", ".dat"])
def test_a_file_that_is_not_there_is_named(
    tmp_path: Path, spoil: Callable[[Path], None], suffix: str
) -> None:
    path = write_record(tmp_path)
    spoil(path.with_suffix(suffix))
    with pytest.raises(EcglibError, match=rf"syn\{suffix}: cannot be read"):
        read_wfdb(path)


def test_lead_names_compare_without_case() -> None:
    record = Record(np.array([[1, 2], [3, 4], [5, 6]], np.float32), ("I", "II", "AVR"), 500, "x")
    np.testing.assert_array_equal(record.select(["aVR", "i"]), [[5, 6], [1, 2]])
    np.testing.assert_array_equal(record.select(["AVL"]), [[1 - 1.5, 2 - 2.0]])


def test_a_lead_that_is_not_there_is_an_error() -> None:
    record = Record(np.zeros((2, 3), np.float32), ("I", "V1"), 500, "x")
    for lead in ("V9", "III"):
        with pytest.raises(EcglibError, match=rf"no lead '{lead}'; ask for one of I, V1"):
            record.select([lead])


def test_a_record_needs_a_name_for_each_row() -> None:
    with pytest.raises(EcglibError, match=r"shape \(2, 3\), but 1 leads"):
        Record(np.zeros((2, 3), np.float32), ("I",), 500, "x")
