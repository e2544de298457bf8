"""The description of what a run consumed: valid Croissant, without network, and true."""

import hashlib
import json
import logging
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlcroissant
import numpy as np
import pandas as pd
import pytest

from ecglib import croissant
from ecglib.cohort import Cohort
from ecglib.croissant import DESCRIPTION, MANIFEST, write_description
from ecglib.datasets import CohortSettings, open_cohort
from ecglib.errors import EcglibError

EMBEDDED = CohortSettings(n_patients=60, seed=3)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return open_cohort(EMBEDDED)


def described(folder: Path) -> dict[str, Any]:
    return json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))


def records(folder: Path, record_set: str) -> list[dict[str, Any]]:
    """What mlcroissant loads, names without the record set, bytes as text."""
    dataset = mlcroissant.Dataset(folder / DESCRIPTION)  # raises where it is not valid
    return [
        {k.partition("/")[2]: v.decode() if isinstance(v, bytes) else v for k, v in record.items()}
        for record in dataset.records(record_set)
    ]


def check_manifest(folder: Path, cohort: Cohort) -> None:
    loaded = pd.DataFrame(records(folder, "ecgs"))[list(cohort.manifest)]
    loaded["age"] = loaded.age.astype(float)
    pd.testing.assert_frame_equal(loaded, cohort.manifest, check_dtype=False)


def test_the_embedded_cohort_is_loaded_back_as_it_is(
    tmp_path: Path, cohort: Cohort, caplog: pytest.LogCaptureFixture
) -> None:
    aged = cohort.manifest.assign(age=np.where(np.arange(len(cohort)) == 1, np.nan, cohort.manifest.age))
    cohort = replace(cohort, manifest=aged)
    write_description(tmp_path, cohort, EMBEDDED, None)
    with caplog.at_level(logging.WARNING):
        check_manifest(tmp_path, cohort)
    assert "not standard" not in caplog.text
    consumed = records(tmp_path, "consumed")[0]
    assert (consumed["n_patients"], consumed["seed"], consumed["records"]) == (60, 3, len(cohort))
    assert consumed["data_hash"] == cohort.fingerprint
    assert consumed["generator"].startswith("deepfake-ecg")
    document = described(tmp_path)
    assert document["license"].endswith("MIT.html")
    assert "thambawita2021deepfake" in document["citeAs"]


def test_files_have_the_hashes_that_the_description_gives(tmp_path: Path, cohort: Cohort) -> None:
    write_description(tmp_path, cohort, EMBEDDED, None)
    files = described(tmp_path)["distribution"]
    assert [file["name"] for file in files] == [MANIFEST]
    assert files[0]["sha256"] == hashlib.sha256((tmp_path / MANIFEST).read_bytes()).hexdigest()


def test_the_same_data_give_the_same_bytes(tmp_path: Path, cohort: Cohort) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        write_description(folder, cohort, EMBEDDED, None)
    assert (tmp_path / "a" / DESCRIPTION).read_bytes() == (tmp_path / "b" / DESCRIPTION).read_bytes()


def test_ptbxl_is_described_with_its_tables_licence_and_number_of_records(
    tmp_path: Path, ptbxl_subset: Path
) -> None:
    settings = CohortSettings(source="ptbxl", stemi_definition="acute_strict")
    cohort = open_cohort(settings, ptbxl_subset)
    write_description(tmp_path, cohort, settings, ptbxl_subset)
    check_manifest(tmp_path, cohort)
    document = described(tmp_path)
    assert document["license"] == "https://creativecommons.org/licenses/by/4.0/"
    assert "10.1038/s41597-020-0495-6" in document["citeAs"]
    for file in document["distribution"][1:3]:
        assert file["sha256"] == hashlib.sha256((ptbxl_subset / file["name"]).read_bytes()).hexdigest()
    waveforms = document["distribution"][3]
    assert waveforms["description"].startswith(f"{len(cohort):,} WFDB records at 100 Hz")
    assert len(list(ptbxl_subset.glob(waveforms["includes"][0]))) >= len(cohort)
    assert records(tmp_path, "consumed")[0]["stemi_definition"] == "acute_strict"


def test_a_hospitals_own_files_are_not_listed(tmp_path: Path, cohort: Cohort) -> None:
    own = replace(cohort, synthetic=False, other_patients=True, name="MUSE exports (84 ECGs)")
    settings = CohortSettings(source="muse", external_site="St. Elsewhere")
    write_description(tmp_path, own, settings, tmp_path / "exports")
    mlcroissant.Dataset(tmp_path / DESCRIPTION)
    text = (tmp_path / DESCRIPTION).read_text(encoding="utf-8")
    assert [file["name"] for file in described(tmp_path)["distribution"]] == [MANIFEST]
    assert str(tmp_path) not in text
    assert "Elsewhere" not in text
    assert "not licensed" in text


def test_the_validator_refuses_what_is_wrong(tmp_path: Path, cohort: Cohort) -> None:
    write_description(tmp_path, cohort, EMBEDDED, None)
    document = described(tmp_path)
    del document["distribution"][0]["sha256"]
    (tmp_path / DESCRIPTION).write_text(json.dumps(document))
    with pytest.raises(mlcroissant.ValidationError, match="sha256"):
        mlcroissant.Dataset(tmp_path / DESCRIPTION)


def test_a_lost_citation_is_named(tmp_path: Path, cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.bib").write_text("")
    monkeypatch.setattr(croissant, "REFERENCES", tmp_path / "empty.bib")
    with pytest.raises(EcglibError, match="no entry thambawita2021deepfake"):
        write_description(tmp_path, cohort, EMBEDDED, None)
