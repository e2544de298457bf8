"""From a folder of MUSE exports and a table of labels to images and a book, with no name in any file."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from muse_files import PLANTED, write_muse

from ecglib import shards
from ecglib.datasets import CohortSettings, DataPaths, open_cohort
from ecglib.errors import EcglibError
from ecglib.prepare import prepare_images
from ecglib.profiles import PROFILES
from ecglib.shards import ImageStore

KEY = hashlib.sha256(b"of the tests").digest()
ECGLIB = Path(sys.executable).with_name("ecglib")
REPORT = "Seen by Dr Planter-Reporting. LVEF {lvef} %. {wall}."
FILE_NAME, REPORTER = "Griselda-{record_id}.xml", "Planter-Reporting"
SMALL_PROFILE = """
description: exports of invented patients
outcomes: [low_lvef, hcm, stemi]
01_cohorts: {source: muse}
"""


@dataclass(frozen=True)
class Hospital:
    """Exports of the embedded cohort under invented names, and the table that an echo laboratory has."""

    folder: Path
    table: pd.DataFrame

    @property
    def paths(self) -> DataPaths:
        return DataPaths(self.folder / "exports", self.folder / "labels.csv", self.folder / "secret.key")


def found_hospital(folder: Path, n_patients: int, n_ecgs: int | None = None) -> Hospital:
    """Write the exports of the first `n_ecgs` of so many patients, and the table."""
    cohort = open_cohort(CohortSettings(n_patients=n_patients))
    manifest = cohort.manifest.head(n_ecgs or len(cohort))
    (folder / "exports").mkdir(parents=True)
    for start in range(0, len(manifest), 64):
        rows = manifest.iloc[start : start + 64]
        for row, record in zip(rows.itertuples(), cohort.read_many(rows.index.to_numpy()), strict=True):
            write_muse(
                folder / "exports" / FILE_NAME.format(record_id=row.record_id),
                record.waveform.astype(np.float64),
                patient_id=f"MRN-{row.patient_id}",
                age=f"{row.age:.0f}",
                gender=str(row.sex).upper(),
                site=str(row.site),
            )
    patients = manifest.groupby("patient_id").first().reset_index()
    reports = [
        REPORT.format(lvef=28 if low else 61, wall="HCM" if hcm else "Normal walls")
        for low, hcm in zip(patients.low_lvef, patients.hcm, strict=True)
    ]
    table = pd.DataFrame({"patient_id": "MRN-" + patients.patient_id, "echo_report": reports})
    table = table.assign(stemi=patients.stemi, external=patients.external.astype(int))
    table.to_csv(folder / "labels.csv", index=False)
    (folder / "secret.key").write_bytes(KEY)
    (folder / "secret.key").chmod(0o600)
    return Hospital(folder, table)


# --- every byte that was written ---


def assert_no_name_in(folder: Path, hospital: Hospital) -> None:
    """No file, plain or compressed, holds a name, an id, the name of a file, a report or the key."""
    secrets = [*PLANTED, REPORTER, "MRN-", *{name[:12] for name in os.listdir(hospital.paths.folder or "")}]
    forms = {form for secret in secrets for form in spellings(secret)}
    forms |= {KEY, KEY.hex().encode()}
    pattern = re.compile(b"|".join(map(re.escape, sorted(forms))))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 3
    for path in files:
        for content in (str(path.relative_to(folder)).encode(), *contents(path)):
            found = pattern.search(content)
            assert found is None, f"{path}: {content[max(0, found.start() - 60) : found.end() + 20]!r}"


def spellings(text: str) -> Iterator[bytes]:
    yield from (text.encode(encoding) for encoding in ("utf-8", "latin-1", "utf-16-le"))
    yield json.dumps(text)[1:-1].encode()
    yield text.encode("ascii", "xmlcharrefreplace")


def contents(path: Path) -> Iterator[bytes]:
    """A file's bytes, and what is packed in them."""
    raw = path.read_bytes()
    yield raw
    if path.suffix == ".parquet":
        yield pd.read_parquet(path).to_csv().encode()
        return
    if path.suffix in (".npy", ".safetensors"):
        return
    for packed in (raw, *embedded_pictures(raw)):
        yield packed
        yield from inflated(packed)


def embedded_pictures(raw: bytes) -> Iterator[bytes]:
    for match in re.finditer(rb"iVBORw0KGgo[A-Za-z0-9+/=\\n]+", raw):
        yield base64.b64decode(match[0].replace(b"\\n", b"") + b"==", validate=False)


def inflated(raw: bytes) -> Iterator[bytes]:
    """Every zlib stream: text chunks of PNGs, pixels, Sphinx's inventory."""
    for match in re.finditer(rb"\x78[\x01\x5e\x9c\xda]", raw):
        try:
            yield zlib.decompressobj().decompress(raw[match.start() :], 1_000_000)
        except zlib.error:
            continue


def test_the_search_finds_what_is_hidden(tmp_path: Path) -> None:
    """The tests below would pass with a search that sees nothing."""
    from PIL import Image, PngImagePlugin

    hospital = found_hospital(tmp_path / "hospital", 60, 1)
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "seen by Quacksalver " * 20, zip=True)
    out = tmp_path / "out"
    out.mkdir()
    Image.new("L", (4, 4)).save(out / "picture.png", pnginfo=info)
    picture = (out / "picture.png").read_bytes()
    assert b"Quacksalver" not in picture
    notebook = json.dumps({"image/png": base64.b64encode(picture).decode()})
    table = pd.DataFrame({"patient_id": ["MRN-7"] * 5})
    for number in range(4):
        (out / f"{number}").write_text("nothing")
    for name, write in {
        "picture.png": lambda path: path.write_bytes(picture),
        "page.ipynb": lambda path: path.write_text(notebook),
        "part.parquet": lambda path: table.to_parquet(path),
        "page.json": lambda path: path.write_text(json.dumps("Möllerström")),
        "Griselda.txt": lambda path: path.write_text(""),
    }.items():
        (out / "picture.png").unlink(missing_ok=True)
        write(out / name)
        with pytest.raises(AssertionError, match=name):
            assert_no_name_in(out, hospital)
        (out / name).unlink()
    assert_no_name_in(out, hospital)


# --- prepare ---


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return found_hospital(tmp_path_factory.mktemp("small"), 60, 50)


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ECGLIB_RUNS", str(tmp_path / "out"))
    (tmp_path / "own.yaml").write_text(SMALL_PROFILE)
    return str(tmp_path / "own.yaml")


def test_prepare_draws_the_images_that_a_run_asks_for(
    small: Hospital, profile: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    prepare_images("muse", profile, small.paths, [])
    (folder,) = (tmp_path / "out" / "own" / "images").iterdir()
    store = ImageStore.open(folder)
    assert len(store) == 50
    cohort = open_cohort(CohortSettings(n_patients=60))
    assert store.manifest.hcm.sum() == cohort.manifest.hcm[:50].sum()
    said = capsys.readouterr().err
    assert "50 files and" in said
    assert_no_name_in(tmp_path / "out", small)
    prepare_images("muse", profile, small.paths, [])
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "the second call drew nothing"


def test_prepare_goes_on_behind_the_finished_shards(
    small: Hospital, profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_SIZE", 16)
    monkeypatch.setattr(shards, "CHUNK_SIZE", 16)
    drawn, real = [], shards.draw

    def interrupted(*arguments: object) -> object:
        drawn.append(1)
        if len(drawn) == 40:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_images("muse", profile, small.paths, [])
    drawn.clear()
    prepare_images("muse", profile, small.paths, [])
    assert len(drawn) == 50 - 32


def test_only_the_terminal_names_a_damaged_file(
    small: Hospital, profile: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bad = (small.paths.folder or Path()) / "Griselda-damaged.xml"
    bad.write_text("<RestingECG>")
    try:
        prepare_images("muse", profile, small.paths, [])
    finally:
        bad.unlink()
    said = capsys.readouterr().err
    assert "files that cannot be read: 1" in said
    assert "Griselda-damaged.xml: line 1" in said
    assert_no_name_in(tmp_path / "out", small)


def test_unknown_source(profile: str) -> None:
    with pytest.raises(EcglibError, match="'mimic': must be one of muse, ptbxl, embedded"):
        prepare_images("mimic", profile, DataPaths(), [])


def test_a_missing_table_is_one_line_and_exit_code_2(small: Hospital, tmp_path: Path) -> None:
    table = tmp_path / "none.csv"
    words = ["prepare", "--data", str(small.paths.folder), "--table", str(table)]
    environment = os.environ | {"ECGLIB_RUNS": str(tmp_path), "ECGLIB_KEY": str(small.paths.key)}
    done = subprocess.run([ECGLIB, *words], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: {table}: no such table; name a CSV file with --table"


# --- the book ---


@pytest.mark.slow
def test_one_command_makes_a_book_of_a_hospitals_own(tmp_path: Path) -> None:
    hospital = found_hospital(tmp_path / "hospital", 300)
    smoke = (PROFILES / "smoke.yaml").read_text()
    smoke = re.sub(r"outcomes: .*", "outcomes: [low_lvef, hcm, stemi]", smoke)
    (tmp_path / "own.yaml").write_text(re.sub(r"n_patients: .*", "source: muse", smoke))
    words = ["run", tmp_path / "own.yaml", "--data", hospital.paths.folder, "--table", hospital.paths.table]
    words += ["--key", hospital.paths.key, "--html", tmp_path / "out" / "html"]
    environment = os.environ | {"ECGLIB_RUNS": str(tmp_path / "out")}
    done = subprocess.run(
        [ECGLIB, *map(str, words)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert_no_name_in(tmp_path / "out", hospital)

    pages = tmp_path / "out" / "html" / "book" / "executed"
    cohorts = words_of(pages / "01_cohorts.html")
    n_ecgs = len(list((hospital.folder / "exports").iterdir()))
    assert f"MUSE exports : {n_ecgs} ECGs" in cohorts
    assert "echo report: ejection fraction at most 40 %" in cohorts
    assert "echo report: any_mention" in cohorts
    assert_table_1_is_theirs(cohorts, n_patients=300)
    for outcome, name in {"low_lvef": "Low LVEF", "hcm": "HCM", "stemi": "STEMI"}.items():
        curves = pages / f"05_finetuning_{outcome}.html"
        assert f"{name} in MUSE exports" in words_of(curves)
        assert curves.read_text().count("<img") >= 4
        assert name in words_of(pages / "08_saliency.html")
    assert "not comparable: other patients" in words_of(pages / "06_results.html")


def assert_table_1_is_theirs(page: str, n_patients: int) -> None:
    """ECGs and prevalence of the external set, and of the other two together, are those that were written."""
    manifest = open_cohort(CohortSettings(n_patients=n_patients)).manifest
    own = manifest.assign(
        stemi=manifest.groupby("patient_id").stemi.transform("first")
    )  # a row is a patient's
    found = re.findall(r"(?:Fine-tuning|Internal test|External) (\d+) \S+ ([\d.]+)", page)
    assert len(found) == 9
    for place, outcome in enumerate(("low_lvef", "hcm", "stemi")):
        counts, shares = np.array(found[3 * place : 3 * place + 3], dtype=float).T
        of_external = own.loc[own.external, outcome]
        assert counts[2] == len(of_external)
        assert shares[2] == pytest.approx(100 * of_external.mean(), abs=0.051)
        inside = own.loc[~own.external, outcome]
        assert counts[:2].sum() == len(inside)
        assert counts[:2] @ shares[:2] / 100 == pytest.approx(inside.sum(), abs=0.5)


def words_of(page: Path) -> str:
    """A page's text, its tags and line ends as single blanks."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page.read_text())).split())
