"""Records: WFDB files (PTB-XL, LUDB) to waveforms in millivolts, with the leads' names.

Almost every ECG on PhysioNet is one header and one signal file in format 16 (interleaved little-endian
int16). Such a record is read here straight by NumPy; all other WFDB layouts go through the wfdb package.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ecglib.errors import EcglibError

LEADS_12 = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
LEADS_8 = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")  # the paper's image, top to bottom
LIMB_LEADS = ("III", "aVR", "aVL", "aVF")  # linear combinations of I and II

MILLIVOLTS = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "v": 1e3}
MISSING_SAMPLE = -32768  # format 16's mark for "no sample here"

# WFDB header(5): "name[/segments] leads rate[/counter] samples ..." and one line for each lead with
# "file format gain[(baseline)][/unit] resolution zero first-value checksum block-size lead-name".
RECORD_LINE = re.compile(r"[-\w]+(?P<segments>/\d+)?\s+(?P<n_leads>\d+)(?:\s+(?P<rest>\S.*))?", re.ASCII)
RATE = re.compile(r"(?P<rate>\d+\.?\d*)(?:/\S*)?", re.ASCII)
SIGNAL_LINE = re.compile(
    r"(?P<file>[-\w]+(?:\.\w+)?)\s+(?P<format>16)\s+"
    r"(?P<gain>\d+\.?\d*(?:e[-+]?\d+)?)(?:\((?P<baseline>-?\d+)\))?(?:/(?P<unit>\S+))?"
    r"\s+\d+\s+(?P<zero>-?\d+)\s+(?P<first>-?\d+)\s+(?P<checksum>-?\d+)\s+\d+\s+(?P<lead>\S.*)",
)


@dataclass(frozen=True)
class Record:
    """One ECG: waveform (leads, samples) in mV as float32, the leads' names, sampling rate in Hz, ids.

    A sample that the recorder marked as missing is NaN.
    """

    waveform: np.ndarray
    leads: tuple[str, ...]
    sampling_rate: float
    record_id: str
    patient_id: str = ""

    def __post_init__(self) -> None:
        if self.waveform.ndim != 2 or len(self.waveform) != len(self.leads):
            raise EcglibError(
                f"record {self.record_id!r}: waveform has shape {self.waveform.shape}, "
                f"but {len(self.leads)} leads are named; give an array (leads, samples)"
            )
        if len({lead.lower() for lead in self.leads}) < len(self.leads) or "" in self.leads:
            raise EcglibError(
                f"record {self.record_id!r}: leads {', '.join(self.leads)}; each must have a name of its own"
            )
        if not 0 < self.sampling_rate < np.inf:
            raise EcglibError(
                f"record {self.record_id!r}: sampling rate {self.sampling_rate} Hz; must be above 0"
            )

    def select(self, leads: Sequence[str]) -> np.ndarray:
        """Waveform (len(leads), samples) of `leads` in that order; case does not count (PTB-XL says AVR).

        Limb leads that are not stored are derived from I and II. EcglibError if a lead is not to be had.
        """
        stored = {name.lower(): row for row, name in enumerate(self.leads)}
        rows = [stored.get(name.lower(), -1) for name in leads]
        if min(rows, default=0) >= 0:
            return self.waveform[rows]
        return np.stack([self._stored_or_derived(name, stored) for name in leads])

    def _stored_or_derived(self, name: str, stored: dict[str, int]) -> np.ndarray:
        if name.lower() in stored:
            return self.waveform[stored[name.lower()]]
        if name.lower() in {lead.lower() for lead in LIMB_LEADS} and {"i", "ii"} <= stored.keys():
            derived = derive_limb_leads(self.waveform[stored["i"]], self.waveform[stored["ii"]])
            return next(wave for lead, wave in derived.items() if lead.lower() == name.lower())
        raise EcglibError(
            f"record {self.record_id!r}: no lead {name!r}; ask for one of {', '.join(self.leads)}"
        )


def derive_limb_leads(lead_i: np.ndarray, lead_ii: np.ndarray) -> dict[str, np.ndarray]:
    """III, aVR, aVL, aVF from I and II (same shape and unit), by Einthoven's and Goldberger's definitions."""
    return {
        "III": lead_ii - lead_i,
        "aVR": -(lead_i + lead_ii) / 2,
        "aVL": lead_i - lead_ii / 2,
        "aVF": lead_ii - lead_i / 2,
    }


def read_wfdb(path: Path, *, record_id: str = "", patient_id: str = "") -> Record:
    """Read a WFDB record; `path` with or without `.hea`; `record_id` is the file's name unless given.

    The waveform is wfdb's float64 physical signal (times 0.001 or 1000 where the header's unit is uV or V)
    rounded to float32. EcglibError for a missing, truncated or contradictory file: sizes, first values and
    checksums are compared.
    """
    header_path = path if path.name.endswith(".hea") else path.with_name(path.name + ".hea")
    record_id = record_id or header_path.name[: -len(".hea")]
    lines = _header_lines(header_path)
    header = _plain_header(header_path, lines)
    if header is None:
        return _read_by_wfdb(header_path, lines, record_id, patient_id)
    digital = _read_format_16(header)
    _check_samples(header_path, header.leads, digital, header.first_values, header.checksums)
    waveform = _to_millivolts(digital, header.gains, header.baselines, header.units, header_path)
    return Record(waveform, header.leads, header.sampling_rate, record_id, patient_id)


@dataclass(frozen=True)
class _PlainHeader:
    """What the header of a format-16, single-segment, single-file record says, lead by lead."""

    dat_path: Path
    sampling_rate: float
    n_samples: int
    leads: tuple[str, ...]
    gains: list[float]  # digital units per `units`
    baselines: list[int]
    units: list[str]
    first_values: list[int]
    checksums: list[int]


def _header_lines(path: Path) -> list[str]:
    """The header's lines without comments; the first one is checked against the number of the others."""
    try:
        text = path.read_bytes().decode("latin-1")  # some headers have umlauts in their comments
    except OSError as error:
        raise EcglibError(
            f"{path}: cannot be read ({error.strerror}); check the folder and the name"
        ) from error
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    match = RECORD_LINE.fullmatch(lines[0]) if lines else None
    if match is None:
        raise EcglibError(f"{path}: not a WFDB header (its first line names no record); fetch the file again")
    n_leads = int(match["n_leads"])
    if match["segments"] is None and not 0 < n_leads == len(lines) - 1:
        raise EcglibError(
            f"{path}: header says {n_leads} leads but describes {len(lines) - 1}; fetch the file again"
        )
    return lines


def _plain_header(path: Path, lines: list[str]) -> _PlainHeader | None:
    """Parse the header of a format-16 single-segment single-file record; None for any other."""
    record_line = lines[0].split()
    signals = [SIGNAL_LINE.fullmatch(line) for line in lines[1:]]
    rate = RATE.fullmatch(record_line[2]) if len(record_line) > 3 else None
    if rate is None or "/" in record_line[0] or not record_line[3].isdecimal():
        return None
    found = [signal for signal in signals if signal is not None]
    if len(found) < len(signals) or len({signal["file"] for signal in found}) > 1:
        return None
    return _PlainHeader(
        dat_path=path.with_name(found[0]["file"]),
        sampling_rate=float(rate["rate"]),
        n_samples=int(record_line[3]),
        leads=tuple(signal["lead"] for signal in found),
        gains=[float(signal["gain"]) for signal in found],
        baselines=[int(signal["baseline"] or signal["zero"]) for signal in found],
        units=[signal["unit"] or "mV" for signal in found],
        first_values=[int(signal["first"]) for signal in found],
        checksums=[int(signal["checksum"]) for signal in found],
    )


def _read_format_16(header: _PlainHeader) -> np.ndarray:
    """Digital samples (leads, samples) as int16."""
    try:
        data = header.dat_path.read_bytes()
    except OSError as error:
        raise EcglibError(
            f"{header.dat_path}: cannot be read ({error.strerror}); fetch the file that the header names"
        ) from error
    expected = 2 * len(header.leads) * header.n_samples
    if len(data) != expected or not expected:
        raise EcglibError(
            f"{header.dat_path}: {len(data)} bytes, but its header says {len(header.leads)} leads x "
            f"{header.n_samples} samples = {expected} bytes; fetch both files again"
        )
    return np.frombuffer(data, "<i2").reshape(header.n_samples, len(header.leads)).T


def _check_samples(
    path: Path,
    leads: Sequence[str],
    digital: np.ndarray,
    first_values: Sequence[int],
    checksums: Sequence[int],
) -> None:
    """Hold the digital samples (leads, samples) against the first values and 16-bit sums of the header."""
    sums = digital.sum(axis=1, dtype=np.int64)
    for lead, first, said_first, total, said_total in zip(
        leads, digital[:, 0].tolist(), first_values, sums.tolist(), checksums, strict=True
    ):
        if first != said_first:
            raise EcglibError(
                f"{path}: lead {lead} starts with {first} but its header says {said_first}; "
                f"fetch both files again"
            )
        if (total - said_total) % 65536:
            raise EcglibError(
                f"{path}: lead {lead} has checksum {total % 65536} but its header says {said_total}; "
                f"fetch both files again"
            )


def _to_millivolts(
    digital: np.ndarray, gains: Sequence[float], baselines: Sequence[int], units: Sequence[str], path: Path
) -> np.ndarray:
    """(digital - baseline) / gain in float64 as wfdb does, then float32 mV."""
    if not 0 < min(gains) <= max(gains) < np.inf:
        raise EcglibError(
            f"{path}: gains from {min(gains):g} to {max(gains):g}; all must be above 0 and finite"
        )
    physical = digital.astype(np.float64, order="C")
    physical -= np.asarray(baselines)[:, None]
    physical /= np.asarray(gains)[:, None]
    if digital.min() == MISSING_SAMPLE:
        physical[digital == MISSING_SAMPLE] = np.nan
    return _scale(physical, units, path)


def _scale(physical: np.ndarray, units: Sequence[str], path: Path) -> np.ndarray:
    unknown = [unit for unit in units if unit.lower() not in MILLIVOLTS]
    if unknown:
        raise EcglibError(f"{path}: unit {unknown[0]!r} is no voltage; the leads must be in mV, uV or V")
    factors = [MILLIVOLTS[unit.lower()] for unit in units]
    if any(factor != 1 for factor in factors):
        physical = physical * np.asarray(factors)[:, None]
    return physical.astype(np.float32, order="C")


def _read_by_wfdb(path: Path, lines: Sequence[str], record_id: str, patient_id: str) -> Record:
    """Every other WFDB layout: other formats, several files, several segments."""
    import wfdb  # takes half a second, and PTB-XL does not need it

    name = str(path)[: -len(".hea")]
    several_segments = "/" in lines[0].split()[0]
    try:
        record: Any = wfdb.rdrecord(name, physical=several_segments)
        physical = record.p_signal if several_segments else record.dac()
    except Exception as error:  # wfdb raises whatever its parsing runs into
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise EcglibError(
            f"{path}: wfdb cannot read this record ({reason}); fetch its files again"
        ) from error
    if not several_segments:
        _check_calibrated(path, lines)
        _check_against_header(path, record)
    leads = tuple(name or "" for name in record.sig_name)
    return Record(_scale(physical.T, record.units, path), leads, float(record.fs), record_id, patient_id)


def _check_calibrated(path: Path, lines: Sequence[str]) -> None:
    """wfdb takes a gain that is 0 or missing for 200 units per mV; here voltage carries information."""
    for line in lines[1:]:
        gain = re.match(r"\S+\s+\S+\s+-?(\d*\.?\d*)", line)
        if gain is None or float(gain[1].strip(".") or 0) == 0:
            raise EcglibError(
                f"{path}: no gain in {line!r}, so no voltage is known; write the gain into the header"
            )


def _check_against_header(path: Path, record: Any) -> None:
    """Check the leads whose first value and checksum are given, unless wfdb has averaged or shifted them."""
    if any(n != 1 for n in record.samps_per_frame) or any(record.skew):
        return
    said = zip(record.sig_name, record.init_value, record.checksum, strict=True)
    rows = [row for row, (_, first, total) in enumerate(said) if first is not None and total is not None]
    _check_samples(
        path,
        [record.sig_name[row] for row in rows],
        record.d_signal.T[rows],
        [record.init_value[row] for row in rows],
        [record.checksum[row] for row in rows],
    )
