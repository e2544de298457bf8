"""What a run consumed, in Croissant: JSON-LD that describes a dataset so that tools can load it.

Croissant 1.0 (MLCommons, http://mlcommons.org/croissant/1.0). The description holds its whole context, so
reading and validating it needs no network. It bears no date: the same data give the same bytes.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from ecglib.cohort import Cohort
from ecglib.datasets import CohortSettings
from ecglib.errors import EcglibError
from ecglib.profiles import ROOT
from ecglib.provenance import atomic_path, code_hash, file_sha256

DESCRIPTION, MANIFEST = "croissant.json", "manifest.csv"
REFERENCES = ROOT / "book" / "references.bib"

_SAME_NAME = (
    *("citeAs", "column", "equivalentProperty", "extract", "field", "fileProperty", "fileObject", "fileSet"),
    *("format", "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet"),
    *("references", "regex", "repeated", "replace", "samplingRate", "separator", "source", "subField"),
    "transform",
)
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{name: f"cr:{name}" for name in _SAME_NAME},
}
_COLUMNS = {
    "record_id": "the ECG's id",
    "patient_id": "the patient's id: no patient is in two parts of a split",
    "site": "where it was recorded",
    "external": "held out as an external test",
    "strat_fold": "fold, 1 to 10; 0 where external",
    "age": "years at the recording; empty where not known",
    "sex": "male, female or unknown",
    "device": "the recorder",
}


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What is known of a source whatever is read from it."""

    licence: str
    about: str
    settings: tuple[str, ...]  # of CohortSettings, that say what is read
    citations: tuple[str, ...] = ()  # keys in the book's references
    url: str = ""


_SOURCES = {
    "embedded": _Source(
        licence="https://spdx.org/licenses/MIT.html",
        about="Synthetic ECGs, made anew from this recipe whenever they are read; no file holds them.",
        settings=("n_patients", "seed"),
        citations=("thambawita2021deepfake",),
    ),
    "ptbxl": _Source(
        licence="https://creativecommons.org/licenses/by/4.0/",
        about="Records of PTB-XL, from a folder laid out as on PhysioNet; file names are relative to it.",
        settings=("stemi_definition", "sampling_rate"),
        citations=("wagner2020ptbxl", "wagner2020physionet", "goldberger2000physionet"),
        url="https://doi.org/10.13026/x4td-x982",
    ),
    "muse": _Source(
        licence="A hospital's own records, under its own rules; not licensed to anybody else.",
        about="A hospital's MUSE exports under pseudonyms; files are not listed, names may tell of patients.",
        settings=("hcm_rule", "seed"),
    ),
}


def write_description(folder: Path, cohort: Cohort, settings: CohortSettings, data_dir: Path | None) -> None:
    """Write `croissant.json` and the manifest that it describes, `manifest.csv`, into `folder`.

    EcglibError where a citation is missing in the book's references.
    """
    table = cohort.manifest.to_csv(index=False, lineterminator="\n").encode()
    described = describe(cohort, settings, data_dir, hashlib.sha256(table).hexdigest())
    text = json.dumps(described, indent=1, ensure_ascii=False) + "\n"
    for name, content in ((MANIFEST, table), (DESCRIPTION, text.encode())):
        with atomic_path(folder / name) as path:
            path.write_bytes(content)


def describe(
    cohort: Cohort, settings: CohortSettings, data_dir: Path | None, manifest_sha256: str
) -> dict[str, Any]:
    """The description: name, licence, citations, files and SHA-256, what was read, the manifest's fields.

    `data_dir` is the folder of PTB-XL where that is the source.
    """
    source = _SOURCES[settings.source]
    counts = f"{len(cohort):,} ECGs of {cohort.manifest.patient_id.nunique():,} patients."
    citations = "\n".join(_bibtex(key) for key in source.citations)
    released = re.search(r"\d+\.\d+\.\d+", cohort.name)
    known = {"url": source.url, "citeAs": citations, "version": released[0] if released else ""}
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": cohort.name,
        "description": f"{source.about} {counts}",
        "license": source.licence,
        **{name: value for name, value in known.items() if value},
        "distribution": [
            _file(MANIFEST, manifest_sha256, "The manifest: one row for each ECG."),
            *(_ptbxl_files(data_dir, cohort, settings) if settings.source == "ptbxl" and data_dir else ()),
        ],
        "recordSet": [_consumed(cohort, settings, source), _manifest(cohort)],
    }


def _file(name: str, sha256: str, description: str) -> dict[str, str]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "description": description,
        "contentUrl": name,
        "encodingFormat": "text/csv",
        "sha256": sha256,
    }


def _ptbxl_files(folder: Path, cohort: Cohort, settings: CohortSettings) -> Iterator[dict[str, Any]]:
    tables = {"ptbxl_database.csv": "The table of records.", "scp_statements.csv": "The table of SCP codes."}
    for name, description in tables.items():
        yield _file(name, file_sha256(folder / name), description)
    rate = settings.sampling_rate
    yield {
        "@type": "cr:FileSet",
        "@id": "waveforms",
        "name": "waveforms",
        "description": f"{len(cohort):,} WFDB records at {rate} Hz, a .hea and a .dat file each.",
        "encodingFormat": "application/octet-stream",
        "includes": [f"records{rate}/*/*.hea", f"records{rate}/*/*.dat"],
    }


def _consumed(cohort: Cohort, settings: CohortSettings, source: _Source) -> dict[str, Any]:
    """One record: the settings that say what is read, and the hash that changes when the data change."""
    values: dict[str, object] = {name: getattr(settings, name) for name in source.settings}
    if cohort.synthetic:
        values |= {
            "generator": f"deepfake-ecg {version('deepfake-ecg')}",
            "code": code_hash("ecglib.synthetic"),
        }
    values |= {"records": len(cohort), "data_hash": cohort.fingerprint}
    return {
        "@type": "cr:RecordSet",
        "@id": "consumed",
        "name": "consumed",
        "description": "What was read: settings, code and data.",
        "field": [
            _field(f"consumed/{name}", name, _type(pd.Series([value]))) for name, value in values.items()
        ],
        "data": [{f"consumed/{name}": value for name, value in values.items()}],
    }


def _manifest(cohort: Cohort) -> dict[str, Any]:
    labels = {o: f"label, 1 or 0, -1 where nobody said: {cohort.origins.get(o, o)}" for o in cohort.outcomes}
    fields = []
    for column, description in (_COLUMNS | labels).items():
        field = _field(f"ecgs/{column}", column, _type(cohort.manifest.loc[:, column]))
        source = {"fileObject": {"@id": MANIFEST}, "extract": {"column": column}}
        fields.append(field | {"description": description, "source": source})
    return {
        "@type": "cr:RecordSet",
        "@id": "ecgs",
        "name": "ecgs",
        "description": "The ECGs of the study and their labels.",
        "key": {"@id": "ecgs/record_id"},
        "field": fields,
    }


def _field(id_: str, name: str, data_type: str) -> dict[str, Any]:
    return {"@type": "cr:Field", "@id": id_, "name": name, "dataType": data_type}


def _type(column: pd.Series) -> str:
    kinds = {"b": "sc:Boolean", "i": "sc:Integer", "f": "sc:Float"}
    return kinds.get(column.to_numpy().dtype.kind, "sc:Text")


def _bibtex(key: str) -> str:
    entry = re.search(
        rf"^@\w+\{{{key},.*?^\}}", REFERENCES.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    if entry is None:
        raise EcglibError(f"{REFERENCES}: no entry {key}; put it back")
    return entry[0]
