"""A small writer of GE MUSE `RestingECG` exports, with whatever oddity a test asks for.

The layout is that of real exports (MUSE 9); the patients, physicians and statements are invented.
"""

import binascii
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ecglib.records import LEADS_8

# What no reader may pass on. All of it is in every file that is written with demographics.
PLANTED = (
    "Möllerström", "Griselda", "Ahornweg 17", "Tannenfurt", "555-0147", "1951-03-07", "03-07-1951",
    "Quacksalver", "Balthasar", "Sundersby Clinic", "Ward Nightingale", "11-23-2019", "17:42:09",
    "Unmistakable anterior infarct", "PA11232019174209",
)  # fmt: skip

PATIENT = """   <PatientDemographics>
      <PatientID>{patient_id}</PatientID>
{age}      <DateofBirth>03-07-1951</DateofBirth>
      <Gender>{gender}</Gender>
      <PatientLastName>Möllerström</PatientLastName>
      <PatientFirstName>Griselda</PatientFirstName>
      <Address>Ahornweg 17</Address>
      <City>Tannenfurt</City>
      <Telephone>555-0147</Telephone>
      <BirthDateTime>1951-03-07</BirthDateTime>
   </PatientDemographics>
"""
TEST = """   <TestDemographics>
      <DataType>RESTING</DataType>
      <Site>{site}</Site>
      <SiteName>Sundersby Clinic</SiteName>
      <AcquisitionDevice>{device}</AcquisitionDevice>
      <LocationName>Ward Nightingale</LocationName>
      <AcquisitionTime>17:42:09</AcquisitionTime>
      <AcquisitionDate>11-23-2019</AcquisitionDate>
      <OverreaderLastName>Quacksalver</OverreaderLastName>
      <OverreaderFirstName>Balthasar</OverreaderFirstName>
   </TestDemographics>
   <RestingECGMeasurements>
      <VentricularRate>60</VentricularRate>
      <ECGSampleBase>{analysed}</ECGSampleBase>
      <ECGSampleExponent>0</ECGSampleExponent>
   </RestingECGMeasurements>
"""
DIAGNOSIS = """   <Diagnosis>
      <Modality>RESTING</Modality>
      <DiagnosisStatement>
         <StmtFlag>ENDSLINE</StmtFlag>
         <StmtText>Unmistakable anterior infarct</StmtText>
      </DiagnosisStatement>
      <DiagnosisStatement>
         <StmtText>Confirmed by Quacksalver, Balthasar (4711) on 11-23-2019</StmtText>
      </DiagnosisStatement>
   </Diagnosis>
"""
PHARMA = """   <PharmaData>
      <PharmaUniqueECGID>PA11232019174209</PharmaUniqueECGID>
   </PharmaData>
"""


def write_muse(
    path: Path,
    waveform: np.ndarray,
    *,
    leads: Sequence[str] = LEADS_8,
    rate: float = 500,
    units_per_bit: str | float = 4.88,
    units: str = "MICROVOLTS",
    sample_base: str | float | None = None,
    sample_exponent: int = 0,
    analysed: str | float | None = None,
    beats_ms: Sequence[float] = (),
    patient_id: str = "0012345",
    age: str = "68",
    age_units: str = "YEARS",
    gender: str = "FEMALE",
    site: str = "11",
    device: str = "MAC55",
    demographics: bool = True,
    diagnosis: bool = True,
    median: bool = True,
    lead_fields: Mapping[str, Mapping[str, str | None]] | None = None,
    encoding: str | None = "ISO-8859-1",
    written_as: str | None = None,
    doctype: str = '<!DOCTYPE RestingECG SYSTEM "restecg.dtd">',
    edit: Callable[[str], str] | None = None,
) -> Path:
    """Write `waveform` (leads, samples), int16 counts or float mV, to `path`, which is returned.

    `rate` in Hz is written as SampleBase unless `sample_base` says otherwise; `analysed` is ECGSampleBase
    (`rate` by default). `lead_fields` gives fields of single leads other values, or takes them out (None).
    `encoding` is what the file declares (None: nothing), `written_as` what it is written in, if not the same.
    `edit` changes the whole text last. The Median waveform is the start of the Rhythm one, upside down.
    """
    counts = _counts(waveform, units_per_bit, units)
    base = sample_base if sample_base is not None else f"{rate:g}"
    fields = lead_fields or {}
    times = "".join(f"      <QRS>\n         <Time>{ms:g}</Time>\n      </QRS>\n" for ms in beats_ms)
    kinds = [("Median", ~counts[:, : max(int(1.2 * rate), 1)])] if median else []
    parts = [
        f'<?xml version="1.0" encoding="{encoding}"?>\n' if encoding else "",
        f"{doctype}\n<RestingECG>\n",
        _demographics(patient_id, age, age_units, gender, site, device, analysed or f"{rate:g}")
        if demographics
        else "",
        DIAGNOSIS if diagnosis else "",
        f"   <QRSTimesTypes>\n{times}   </QRSTimesTypes>\n" if times else "",
        *(
            _waveform_block(kind, samples, leads, base, sample_exponent, units_per_bit, units, fields)
            for kind, samples in [*kinds, ("Rhythm", counts)]
        ),
        PHARMA if demographics else "",
        "</RestingECG>\n",
    ]
    text = "".join(parts)
    path.write_bytes((edit(text) if edit else text).encode(written_as or encoding or "utf-8"))
    return path


def _counts(waveform: np.ndarray, units_per_bit: str | float, units: str) -> np.ndarray:
    """Little-endian int16 (leads, samples); mV become the nearest count."""
    if np.issubdtype(waveform.dtype, np.floating):
        per_mv = {"MICROVOLTS": 1e3, "MILLIVOLTS": 1.0, "VOLTS": 1e-3, "NANOVOLTS": 1e6}[units]
        waveform = np.rint(waveform * (per_mv / float(units_per_bit)))
    return waveform.astype("<i2")


def _demographics(
    patient_id: str, age: str, age_units: str, gender: str, site: str, device: str, analysed: str | float
) -> str:
    years = f"      <PatientAge>{age}</PatientAge>\n      <AgeUnits>{age_units}</AgeUnits>\n" if age else ""
    patient = PATIENT.format(patient_id=patient_id, age=years, gender=gender)
    return patient + TEST.format(site=site, device=device, analysed=analysed)


def _waveform_block(
    kind: str,
    counts: np.ndarray,
    leads: Sequence[str],
    sample_base: str | float,
    sample_exponent: int,
    units_per_bit: str | float,
    units: str,
    lead_fields: Mapping[str, Mapping[str, str | None]],
) -> str:
    leads_text = "".join(
        _lead_block(lead, row.tobytes(), units_per_bit, units, lead_fields.get(lead, {}))
        for lead, row in zip(leads, counts, strict=True)
    )
    return (
        f"   <Waveform>\n      <WaveformType>{kind}</WaveformType>\n"
        f"      <WaveformStartTime>0</WaveformStartTime>\n      <NumberofLeads>{len(leads)}</NumberofLeads>\n"
        f"      <SampleType>CONTINUOUS_SAMPLES</SampleType>\n      <SampleBase>{sample_base}</SampleBase>\n"
        f"      <SampleExponent>{sample_exponent}</SampleExponent>\n"
        f"      <LowPassFilter>150</LowPassFilter>\n{leads_text}   </Waveform>\n"
    )


def _lead_block(
    lead: str, data: bytes, units_per_bit: str | float, units: str, changed: Mapping[str, str | None]
) -> str:
    encoded = binascii.b2a_base64(data, newline=False).decode("ascii")
    lines = "\n".join(encoded[start : start + 72] for start in range(0, len(encoded), 72))
    fields: dict[str, str | None] = {
        "LeadByteCountTotal": str(len(data)),
        "LeadTimeOffset": "0",
        "LeadSampleCountTotal": str(len(data) // 2),
        "LeadAmplitudeUnitsPerBit": str(units_per_bit),
        "LeadAmplitudeUnits": units,
        "LeadHighLimit": "32767",
        "LeadLowLimit": "-32768",
        "LeadID": lead,
        "LeadOffsetFirstSample": "0",
        "FirstSampleBaseline": "0",
        "LeadSampleSize": "2",
        "LeadOff": "FALSE",
        "BaselineSway": "FALSE",
        "LeadDataCRC32": str(zlib.crc32(data)),
        "WaveFormData": f"\n{lines}\n         ",
    }
    fields.update(changed)
    elements = (f"         <{name}>{text}</{name}>\n" for name, text in fields.items() if text is not None)
    return f"      <LeadData>\n{''.join(elements)}      </LeadData>\n"
