"""MUSE: GE's `RestingECG` XML exports to records in millivolts, with what a study may know of the patient.

The file is read in one pass of expat that copies the few elements named in `WANTED` and nothing else, so that
names, addresses, dates and statements are never held. The DTD that real files name is never fetched; a file
that declares entities, nests deeply or is far larger than an ECG is refused before it costs time or memory.

What GE does not document was found from real exports. `LeadDataCRC32` is zlib's CRC32 of the decoded bytes
(little-endian int16). The times of `QRSTimesTypes` are milliseconds from the start of the Rhythm waveform.
There is no documented mark for a missing sample; -32768, at the usual 4.88 µV a voltage of -160 mV that no
body makes, is read as missing (NaN), as in WFDB's format 16. `_sampling_rate` has the rule for the rate.
"""

import binascii
import re
import stat
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np

from ecglib.errors import EcglibError
from ecglib.records import LEADS_8, LEADS_12, MISSING_SAMPLE, Record

MAX_BYTES = 16 * 2**20  # a 10 s export has 0.15 MB, five minutes of twelve leads have 5 MB
MAX_DEPTH = 16  # MUSE uses 5
MAX_ELEMENTS = 50_000  # MUSE writes some 600
MAX_TAG_BYTES = 2**18  # or of a comment; MUSE writes neither attributes nor comments
MAX_CHARACTERS = 256  # of any text that is kept, but for the samples
CHUNK = 2**16  # bytes handed to expat at a time: all that it still parses after a refusal
# expat decodes the first four itself, the others through Python's tables.
ENCODINGS = (
    "utf-8", "utf-16", "iso-8859-1", "us-ascii", "iso-8859-2", "iso-8859-9", "iso-8859-15",
    "windows-1250", "windows-1252", "windows-1254",
)  # fmt: skip

MILLIVOLTS = {
    "NANOVOLTS": 1e-6, "MICROVOLTS": 1e-3, "MILLIVOLTS": 1.0, "VOLTS": 1e3,
    "NV": 1e-6, "UV": 1e-3, "MV": 1.0, "V": 1e3,
}  # fmt: skip
YEARS = {"YEARS": 1.0, "MONTHS": 1 / 12, "WEEKS": 7 / 365.25, "DAYS": 1 / 365.25, "HOURS": 1 / 8766}
SEXES = {"MALE": "male", "M": "male", "FEMALE": "female", "F": "female", "UNKNOWN": "unknown", "": "unknown"}
DURATIONS_S = (5.0, 10.0)  # what MUSE stores of a resting ECG
RATES_HZ = (250.0, 500.0)  # what MUSE stores it at
TOLERANCE = 0.01  # of a duration
MIN_RATE_HZ, MAX_RATE_HZ = 100.0, 2000.0
MAX_BEAT_MS = 600_000.0  # of a time that is taken for a beat's
MIN_LEAD = 0.1  # of a correlation before the next, to decide between rates
MIN_MV_PER_BIT, MAX_MV_PER_BIT = 1e-6, 1.0  # int16 then spans 0.07 mV or 65 V: no ECG fits or needs that
MAX_AGE_YEARS = 130.0

# The elements that are read: a number is the longest text that is kept, everything not named is skipped.
WANTED: Mapping[str, Any] = {
    "RestingECG": {
        "PatientDemographics": dict.fromkeys(
            ("PatientID", "PatientAge", "AgeUnits", "Gender"), MAX_CHARACTERS
        ),
        "TestDemographics": dict.fromkeys(("Site", "AcquisitionDevice"), MAX_CHARACTERS),
        "RestingECGMeasurements": dict.fromkeys(("ECGSampleBase", "ECGSampleExponent"), MAX_CHARACTERS),
        "QRSTimesTypes": {"QRS": {"Time": MAX_CHARACTERS}},
        "Waveform": {
            **dict.fromkeys(
                ("WaveformType", "NumberofLeads", "SampleBase", "SampleExponent"), MAX_CHARACTERS
            ),
            "LeadData": {
                **dict.fromkeys(
                    (
                        "LeadID", "LeadSampleCountTotal", "LeadSampleSize", "LeadTimeOffset",
                        "LeadOffsetFirstSample", "FirstSampleBaseline", "LeadAmplitudeUnitsPerBit",
                        "LeadAmplitudeUnits", "LeadOff", "LeadDataCRC32",
                    ),
                    MAX_CHARACTERS,
                ),
                "WaveFormData": MAX_BYTES,
            },
        },
    }
}  # fmt: skip


@dataclass(frozen=True)
class MuseExport:
    """One export: the Rhythm waveform as a record, and what is known of patient and recording."""

    record: Record  # waveform (leads, samples) in mV as float32, leads in the file's order
    patient_id: str  # as in the file, "" where there is none
    age: float  # years, NaN where missing
    sex: str  # "male", "female" or "unknown"
    device: str  # acquisition device, "" where there is none
    site: str  # MUSE's code of the site, "" where there is none
    notes: tuple[str, ...]  # what was odd in the file and how it was settled; quotes no text of the file


def read_muse(path: Path, *, record_id: str = "") -> MuseExport:
    """Read a MUSE export; `record_id` is the file's name without its ending unless given.

    Leads I, II and V1 to V6 must be there; of further leads the four limb leads are kept. EcglibError for a
    file that is damaged, contradicts itself or is not such an export; its line quotes no text of the file.
    """
    export = _Elements(path).read()
    notes: list[str] = []
    rhythm = _rhythm(export, path, notes)
    leads = _leads(rhythm, path, notes)
    waveform = _waveform(leads, path, notes)
    rate = _sampling_rate(export, rhythm, waveform, path, notes)
    patient, test = (_block(export, name) for name in ("PatientDemographics", "TestDemographics"))
    patient_id = _text(patient, "PatientID", path)
    return MuseExport(
        record=Record(waveform, tuple(leads), rate, record_id or path.stem, patient_id),
        patient_id=patient_id,
        age=_age(patient, path, notes),
        sex=_sex(patient, path, notes),
        device=_text(test, "AcquisitionDevice", path),
        site=_site(test, path, notes),
        notes=tuple(notes),
    )


Block = dict[str, list[Any]]  # an element: its children's blocks and texts by name


class _Elements:
    """One pass of expat over a file: the elements in `WANTED` as nested blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root: Block = {}
        self.n_elements = 0
        self.open: list[tuple[Any, Block]] = []  # for each open element what is wanted in it, and its block
        self.wanted: Any = WANTED
        self.block = self.root
        self.texts: list[str] = []
        self.n_characters = 0
        self.parser = parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.buffer_size = CHUNK
        parser.XmlDeclHandler = self._declaration
        parser.StartDoctypeDeclHandler = self._doctype
        parser.SkippedEntityHandler = self._skipped_entity
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end

    def read(self) -> Block:
        """The block of the element `RestingECG`."""
        try:
            status = self.path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise EcglibError(f"{self.path}: not a file; name a MUSE XML export")
            if status.st_size > MAX_BYTES:
                raise EcglibError(
                    f"{self.path}: {status.st_size / 1e6:.0f} MB, an export of one ECG has at most "
                    f"{MAX_BYTES / 1e6:.0f} MB; export this ECG alone"
                )
            with self.path.open("rb") as file:
                n_bytes = 0
                while chunk := file.read(CHUNK):
                    self.parser.Parse(chunk, False)
                    n_bytes += len(chunk)
                    self._check_progress(n_bytes)
            self.parser.Parse(b"", True)
        except OSError as error:
            raise EcglibError(
                f"{self.path}: cannot be read ({error.strerror}); check the folder and the name"
            ) from error
        except expat.ExpatError as error:
            raise EcglibError(
                f"{self.path}: line {error.lineno} is no XML in the file's encoding "
                f"({expat.ErrorString(error.code)}); export it again from MUSE"
            ) from error
        if "RestingECG" not in self.root:
            raise EcglibError(f"{self.path}: its root is not RestingECG; give a MUSE export of a resting ECG")
        return self.root["RestingECG"][0]

    def _check_progress(self, n_bytes: int) -> None:
        """expat starts a tag or comment over with each chunk until it ends; a long one would take seconds."""
        if n_bytes - self.parser.CurrentByteIndex > MAX_TAG_BYTES:
            raise EcglibError(
                f"{self.path}: a tag or comment of more than {MAX_TAG_BYTES} bytes; export it again from MUSE"
            )

    def _declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        if (encoding or "utf-8").lower() not in ENCODINGS:
            raise EcglibError(
                f"{self.path}: its encoding is none of {', '.join(ENCODINGS)}; save it in one of these"
            )

    def _doctype(self, name: str, system_id: str | None, public_id: str | None, has_subset: int) -> None:
        if has_subset:
            raise EcglibError(
                f"{self.path}: its DOCTYPE holds declarations, where entities could hide; MUSE writes none: "
                f"export it again from MUSE"
            )

    def _skipped_entity(self, name: str, is_parameter: bool) -> None:
        raise EcglibError(f"{self.path}: uses an entity that XML does not define; export it again from MUSE")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self.n_elements += 1
        if self.n_elements > MAX_ELEMENTS or len(self.open) >= MAX_DEPTH:
            raise EcglibError(
                f"{self.path}: more than {MAX_ELEMENTS} elements or {MAX_DEPTH} levels of them, MUSE writes "
                f"some 600 on 5 levels; export it again from MUSE"
            )
        self.open.append((self.wanted, self.block))
        if self.wanted is None:
            return
        if not isinstance(self.wanted, dict):
            raise EcglibError(
                f"{self.path}: elements stand where MUSE writes a plain value; export it again from MUSE"
            )
        self.wanted = None if self._in_other_waveform(name) else self.wanted.get(name)
        if isinstance(self.wanted, dict):
            self.block = {}
        elif self.wanted is not None:
            self.texts, self.n_characters = [], 0
            self.parser.CharacterDataHandler = self._characters

    def _in_other_waveform(self, name: str) -> bool:
        """Whether this lead is of the Median or another waveform than the Rhythm one."""
        return name == "LeadData" and any(not _is_rhythm(kind) for kind in self.block.get("WaveformType", ()))

    def _characters(self, text: str) -> None:
        self.n_characters += len(text)
        if self.n_characters > self.wanted:
            raise EcglibError(
                f"{self.path}: a value of more than {self.wanted} characters; export it again from MUSE"
            )
        self.texts.append(text)

    def _end(self, name: str) -> None:
        wanted, value = self.wanted, self.block
        self.wanted, self.block = self.open.pop()
        if wanted is None:
            return
        if not isinstance(wanted, dict):
            self.parser.CharacterDataHandler = None
            value = "".join(self.texts)
        self.block.setdefault(name, []).append(value)


def _block(export: Block, name: str) -> Block:
    """The texts of all elements `name` in one block; several are read as one."""
    merged: Block = {}
    for block in export.get(name, ()):
        for key, values in block.items():
            merged.setdefault(key, []).extend(values)
    return merged


def _text(block: Block, name: str, path: Path) -> str:
    """The one text of `name` without surrounding blanks, "" where there is none."""
    texts = {text.strip() for text in block.get(name, ())} or {""}
    if len(texts) > 1:
        raise EcglibError(f"{path}: {name} is given twice and differently; export it again from MUSE")
    return texts.pop()


def _number(block: Block, name: str, path: Path) -> float | None:
    """The one finite number of `name`; None where there is none."""
    try:
        value = float(_text(block, name, path))
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _is_rhythm(kind: str) -> bool:
    return kind.strip().lower() == "rhythm"


def _rhythm(export: Block, path: Path, notes: list[str]) -> Block:
    """The Rhythm waveform; the first if there are several."""
    found = [block for block in export.get("Waveform", ()) if _is_rhythm(_text(block, "WaveformType", path))]
    if not found:
        raise EcglibError(f"{path}: holds no Rhythm waveform; export it again with its waveforms")
    if len(found) > 1:
        notes.append(f"It holds {len(found)} Rhythm waveforms; the first is read.")
    return found[0]


def _leads(rhythm: Block, path: Path, notes: list[str]) -> dict[str, Block]:
    """The leads by their usual names, in the file's order; leads beyond the twelve are left out."""
    names = {name.lower(): name for name in LEADS_12}
    blocks = rhythm.get("LeadData", [])
    leads: dict[str, Block] = {}
    for block in blocks:
        name = names.get(_text(block, "LeadID", path).lower())
        if name in leads:
            raise EcglibError(f"{path}: lead {name} is stored twice; export it again from MUSE")
        if name is not None:
            leads[name] = block
    missing = [name for name in LEADS_8 if name not in leads]
    if missing:
        raise EcglibError(
            f"{path}: no lead {', '.join(missing)}; {', '.join(LEADS_8)} must be stored: leave this ECG out"
        )
    if len(leads) < len(blocks):
        notes.append(f"{len(blocks) - len(leads)} leads beyond the usual twelve are left out.")
    said = _number(rhythm, "NumberofLeads", path)
    if said is not None and said != len(blocks):
        notes.append(f"NumberofLeads says {said:g}, but {len(blocks)} are stored; these are read.")
    return leads


def _waveform(leads: Mapping[str, Block], path: Path, notes: list[str]) -> np.ndarray:
    """Samples (leads, samples) in mV as float32, missing ones NaN."""
    unchecked = [name for name, block in leads.items() if not _text(block, "LeadDataCRC32", path)]
    if unchecked:
        notes.append(f"No checksum is given for {', '.join(unchecked)}.")
    off = [name for name, block in leads.items() if _text(block, "LeadOff", path).upper() == "TRUE"]
    if off:
        notes.append(f"The recorder says that electrodes were off for {', '.join(off)}.")
    _check_simultaneous(leads, path)
    counts = [_samples(block, name, path, notes) for name, block in leads.items()]
    lengths = [len(count) for count in counts]
    if len(set(lengths)) > 1:
        said = ", ".join(f"{name} {length}" for name, length in zip(leads, lengths, strict=True))
        raise EcglibError(f"{path}: leads differ in samples ({said}); export it again from MUSE")
    digital = np.stack(counts)
    scales = [_millivolts_per_bit(block, name, path) for name, block in leads.items()]
    waveform = (digital * np.array(scales)[:, None]).astype(np.float32)
    if digital.min() == MISSING_SAMPLE:
        waveform[digital == MISSING_SAMPLE] = np.nan
        notes.append(f"{np.isnan(waveform).sum()} samples are {MISSING_SAMPLE} and taken as missing.")
    return waveform


def _samples(lead: Block, name: str, path: Path, notes: list[str]) -> np.ndarray:
    """The lead's counts (samples,) as int16, held against its checksum and its stated length."""
    if _number(lead, "LeadSampleSize", path) not in (None, 2):
        raise EcglibError(f"{path}: lead {name} is not stored in 2 bytes a sample; export it again from MUSE")
    encoded = lead.get("WaveFormData", [])
    try:
        data = binascii.a2b_base64("".join("".join(encoded).split()), strict_mode=True)
    except ValueError as error:
        raise EcglibError(
            f"{path}: lead {name} is cut off or is no base64; export it again from MUSE"
        ) from error
    if not data or len(data) % 2 or len(encoded) > 1:
        raise EcglibError(
            f"{path}: lead {name} has {len(data)} bytes in {len(encoded)} WaveFormData; it must have one "
            f"with 2 bytes for each sample: export it again from MUSE"
        )
    checked = _check_crc(lead, data, name, path)
    said = _number(lead, "LeadSampleCountTotal", path)
    if said is not None and said != len(data) // 2:
        if not checked:
            raise EcglibError(
                f"{path}: lead {name} has {len(data) // 2} samples, but its LeadSampleCountTotal says "
                f"{said:g} and there is no checksum; export it again from MUSE"
            )
        notes.append(
            f"LeadSampleCountTotal of {name} says {said:g}, but its {len(data) // 2} samples are whole."
        )
    return np.frombuffer(data, "<i2")


def _check_crc(lead: Block, data: bytes, name: str, path: Path) -> bool:
    """Hold the decoded bytes against the lead's CRC32; False if it has none."""
    said = _text(lead, "LeadDataCRC32", path)
    if not said:
        return False
    if re.fullmatch(r"[-+]?\d{1,10}", said, re.ASCII) is None or int(said) % 2**32 != zlib.crc32(data):
        raise EcglibError(
            f"{path}: lead {name} does not match its LeadDataCRC32, so its samples are damaged; "
            f"export it again from MUSE"
        )
    return True


def _check_simultaneous(leads: Mapping[str, Block], path: Path) -> None:
    """All leads must start at the same time and be stored as plain samples."""
    for field in ("LeadTimeOffset", "LeadOffsetFirstSample"):
        if len({_number(block, field, path) or 0 for block in leads.values()}) > 1:
            raise EcglibError(
                f"{path}: {field} differs between leads, so they were not recorded together; "
                f"export the ECG with simultaneous leads"
            )
    if any(_number(block, "FirstSampleBaseline", path) for block in leads.values()):
        raise EcglibError(
            f"{path}: FirstSampleBaseline is not 0, so the samples are no plain voltages; "
            f"export it again from MUSE"
        )


def _millivolts_per_bit(lead: Block, name: str, path: Path) -> float:
    unit = _text(lead, "LeadAmplitudeUnits", path).upper()
    if unit not in MILLIVOLTS:
        raise EcglibError(
            f"{path}: LeadAmplitudeUnits of lead {name} is none of {', '.join(list(MILLIVOLTS)[:4])}, so no "
            f"voltage is known; export it again from MUSE"
        )
    units_per_bit = _number(lead, "LeadAmplitudeUnitsPerBit", path) or 0
    millivolts = units_per_bit * MILLIVOLTS[unit]
    if not MIN_MV_PER_BIT <= millivolts <= MAX_MV_PER_BIT:
        raise EcglibError(
            f"{path}: lead {name} has {1e3 * millivolts:g} µV per bit; it must be from "
            f"{1e3 * MIN_MV_PER_BIT:g} to {1e3 * MAX_MV_PER_BIT:g} (usual is 4.88): export it again from MUSE"
        )
    return millivolts


def _sampling_rate(export: Block, rhythm: Block, waveform: np.ndarray, path: Path, notes: list[str]) -> float:
    """Sampling rate in Hz of the waveform (leads, samples): the one that agrees with its duration.

    What a file tells about the duration: MUSE stores 5 or 10 s, and QRSTimesTypes lists the beats' times.
    LeadTimeOffset and WaveformStartTime are 0 in every file seen, LeadSampleCountTotal counts no seconds, the
    Median's rate need not be the Rhythm's, and ECGSampleBase is the rate of the analysis. So the rule is:

    1. SampleBase x 10^SampleExponent, if it gives 5 or 10 s with the last beat in the second half.
    2. Else, of this rate, 250 and 500 Hz, the one that gives 5 or 10 s.
    3. If several do (2,500 samples at 250 or 500 Hz): the one at which the listed beats meet the steepest
       samples, else the stated one, else ECGSampleBase; refused if these decide nothing.
    4. If none does, the stated rate stays.
    """
    n_samples = waveform.shape[1]
    stated = _stated_rate(rhythm, "Sample", path)
    beats_s = _beats_s(export, path)
    fitting = [r for r in dict.fromkeys((stated, *RATES_HZ)) if r and _is_usual_duration(n_samples / r)]
    if stated in fitting and (not beats_s or n_samples / stated / 2 < max(beats_s) <= n_samples / stated):
        return stated
    if stated is not None and not fitting:
        notes.append(f"The waveform lasts {n_samples / stated:.3g} s, neither 5 nor 10 s.")
        return stated
    says = f"SampleBase and SampleExponent say {stated:g} Hz" if stated else "No possible rate is stated"
    analysed = _stated_rate(_block(export, "RestingECGMeasurements"), "ECGSample", path)
    reasons = {
        "no other rate gives 5 or 10 s": fitting[0] if len(fitting) == 1 else None,
        "the beats that the file lists are there at this rate": _rate_of_beats(waveform, beats_s, fitting),
        "nothing speaks clearly against it": stated if stated in fitting else None,
        "ECGSampleBase says so": analysed if analysed in fitting else None,
    }
    decided = [(rate, reason) for reason, rate in reasons.items() if rate is not None]
    if not decided:
        raise EcglibError(
            f"{path}: {says}, and {n_samples} samples are not 5 or 10 s at just one of 250 and 500 Hz; "
            f"correct SampleBase in the file"
        )
    rate, reason = decided[0]
    if rate == stated:
        notes.append(f"Its beats' times do not fit {n_samples / rate:g} s at {rate:g} Hz, but {reason}.")
    else:
        notes.append(f"{says}, but {n_samples} samples are {n_samples / rate:g} s at {rate:g} Hz: {reason}.")
    return rate


def _rate_of_beats(waveform: np.ndarray, beats_s: Sequence[float], rates: Sequence[float]) -> float | None:
    """The rate at which the listed beats meet the steep samples; None if that is not clear.

    Steepness, summed over leads, is correlated with "within 60 ms of a beat": about 0.6 at the right rate
    and 0 at the others in GE's exports; on LUDB it found 298 of 300 rates and left 2 open.
    """
    steepness = np.nansum(np.abs(np.diff(waveform, axis=1)), axis=0)
    correlations = []
    for rate in rates:
        near = np.zeros(len(steepness))
        for beat_s in beats_s:
            near[max(int((beat_s - 0.06) * rate), 0) : max(int((beat_s + 0.06) * rate), 0)] = 1
        varies = near.std() > 0 and steepness.std() > 0
        correlations.append(np.corrcoef(near, steepness)[0, 1] if varies else 0.0)
    *others, best = sorted(correlations) or [0.0]
    return rates[correlations.index(best)] if best - max(others, default=0) > MIN_LEAD else None


def _stated_rate(block: Block, prefix: str, path: Path) -> float | None:
    """Base x 10^exponent in Hz; None where it is missing or no ECG is sampled so."""
    base = _number(block, f"{prefix}Base", path) or 0.0
    exponent = _number(block, f"{prefix}Exponent", path) or 0.0
    rate = base * 10.0**exponent if abs(exponent) <= 6 else 0.0
    return rate if MIN_RATE_HZ <= rate <= MAX_RATE_HZ else None


def _is_usual_duration(seconds: float) -> bool:
    return any(abs(seconds - usual) <= TOLERANCE * usual for usual in DURATIONS_S)


def _beats_s(export: Block, path: Path) -> list[float]:
    """Times of the beats that the analysis marked, in s from the start of the waveform."""
    times = (_number(mark, "Time", path) for mark in _block(export, "QRSTimesTypes").get("QRS", ()))
    return [time / 1e3 for time in times if time is not None and 0 < time <= MAX_BEAT_MS]


def _site(test: Block, path: Path, notes: list[str]) -> str:
    """The site's code; a text that looks like a name or an address is left out."""
    site = _text(test, "Site", path)
    if re.fullmatch(r"[\w.-]{0,16}", site):
        return site
    notes.append("Site is no code; it is left out.")
    return ""


def _age(patient: Block, path: Path, notes: list[str]) -> float:
    """Age in years, NaN where missing or unusable."""
    if not _text(patient, "PatientAge", path):
        return float("nan")
    unit = _text(patient, "AgeUnits", path).upper()
    if not unit:
        notes.append("AgeUnits is missing; the age is taken to be in years.")
        unit = "YEARS"
    value = _number(patient, "PatientAge", path)
    if value is None or unit not in YEARS or not 0 <= value * YEARS[unit] <= MAX_AGE_YEARS:
        notes.append("PatientAge and AgeUnits make no age; it is taken as missing.")
        return float("nan")
    return value * YEARS[unit]


def _sex(patient: Block, path: Path, notes: list[str]) -> str:
    gender = _text(patient, "Gender", path).upper()
    if gender not in SEXES:
        notes.append("Gender is neither male nor female; it is taken as unknown.")
    return SEXES.get(gender, "unknown")
