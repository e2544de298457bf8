"""Shards: the images are those of the records, runs that were killed go on, and damage is found."""

import json
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecglib import pool, shards
from ecglib.cohort import Cohort
from ecglib.errors import EcglibError
from ecglib.filtering import FilterSettings, preprocess
from ecglib.image import ImageSettings, draw
from ecglib.quality import QualitySettings
from ecglib.records import LEADS_8, Record
from ecglib.shards import ImageStore, JoinedImages, read_tokens, write_images, write_tokens
from ecglib.synthetic import Rows

SMALL = ImageSettings(size=64)


@dataclass(frozen=True)
class Sines:
    """Waveforms that differ from row to row; can be slow, stop as if interrupted, or die as if killed."""

    pause_s: float = 0.0
    stop_at: int = -1
    die_at: int = -1

    def read_many(self, rows: Rows) -> list[Record]:
        if self.stop_at in rows:
            raise KeyboardInterrupt
        if self.die_at in rows:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.pause_s)
        return [Record(self.sine(row), LEADS_8, 500, f"r{row}", f"p{row // 2}") for row in rows]

    def sine(self, row: int) -> np.ndarray:
        time_s = np.arange(2500) / 500
        frequencies = 1 + 0.1 * row + np.arange(8)[:, None]
        return np.sin(2 * np.pi * frequencies * time_s).astype(np.float32)

    def evidence(self, rows: Rows) -> None:
        return None


def sines(n: int, waveforms: Sines | None = None, fingerprint: str = "sines") -> Cohort:
    manifest = pd.DataFrame({"record_id": [f"r{row}" for row in range(n)], "stemi": np.arange(n) % 3 == 0})
    return Cohort("Sines", manifest, ("stemi",), True, False, fingerprint, waveforms or Sines())


def write(directory: Path, cohort: Cohort, **options: object) -> None:
    write_images(cohort, FilterSettings(), SMALL, directory, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images in shards of eight."""
    directory = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_SIZE", 8)
        write(directory, sines(20))
    return directory


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_SIZE", 8)
    monkeypatch.setattr(shards, "CHUNK_SIZE", 3)
    monkeypatch.setattr(pool, "POOL_FROM", 100)


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    """A copy of the twenty images, to be damaged."""
    for path in written.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def file_bytes(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_images_are_the_filtered_and_drawn_records(written: Path) -> None:
    store = ImageStore.open(written)
    assert len(store) == 20
    assert [len(shard) for shard in store.shards] == [8, 8, 4]
    assert list(store.manifest.record_id) == [f"r{row}" for row in range(20)]
    for row in (0, 7, 8, 19):
        expected = draw(preprocess(Sines().sine(row), 500, FilterSettings()), SMALL)
        assert np.array_equal(store.pixels([row])[0], expected)
    store.verify()


@settings(max_examples=30)
@given(rows=st.lists(st.integers(0, 19), max_size=30))
def test_any_rows_in_any_order(written: Path, rows: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_SIZE", 8)
        store = ImageStore.open(written)
        every = np.concatenate(store.shards)
        assert np.array_equal(store.pixels(rows), every[np.array(rows, dtype=int)])


def test_images_outside_the_store_are_refused(written: Path) -> None:
    store = ImageStore.open(written)
    for row in (-1, 20):
        with pytest.raises(EcglibError, match=f"image {row} is not among the 20"):
            store.pixels([0, row])


def test_chosen_rows_keep_their_order(tmp_path: Path, written: Path) -> None:
    rows = [15, 2, 9]
    write(tmp_path, sines(20), rows=rows)
    store = ImageStore.open(tmp_path)
    assert list(store.manifest.record_id) == ["r15", "r2", "r9"]
    assert np.array_equal(store.pixels([0, 1, 2]), ImageStore.open(written).pixels(rows))


def test_bytes_do_not_depend_on_the_number_of_workers(tmp_path: Path, written: Path) -> None:
    write(tmp_path, sines(20), workers=2)
    assert file_bytes(tmp_path) == file_bytes(written)


def test_an_interrupted_run_goes_on_with_the_next_shard(tmp_path: Path, written: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, sines(20, Sines(stop_at=13)))
    assert [path.name for path in tmp_path.glob("*.npy")] == ["images-00000.npy"]
    with pytest.raises(EcglibError, match=r"not finished: images-00001\.npy is missing"):
        ImageStore.open(tmp_path)
    first_made = (tmp_path / "images-00000.npy").stat().st_mtime_ns
    write(tmp_path, sines(20, Sines(stop_at=4)))  # row 4 is in the shard that exists: never read again
    assert (tmp_path / "images-00000.npy").stat().st_mtime_ns == first_made
    assert file_bytes(tmp_path) == file_bytes(written)


def test_a_killed_worker_ends_the_run_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(EcglibError, match="was killed"):
        write(tmp_path, sines(20, Sines(die_at=13)), workers=2)


def write_slowly(directory: Path) -> None:
    shards.SHARD_SIZE, shards.CHUNK_SIZE = 8, 4
    write(directory, sines(20, Sines(pause_s=0.3)), workers=1)


def test_a_killed_run_goes_on(tmp_path: Path, written: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=write_slowly, args=(tmp_path,))
    process.start()
    deadline = time.monotonic() + 120
    while not (tmp_path / "checksums.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.join()
    assert len(list(tmp_path.glob("*.npy"))) < 3, "it was killed in the middle"
    write(tmp_path, sines(20, Sines(stop_at=4)))
    for partial in tmp_path.glob(".*.partial"):
        partial.unlink()
    assert file_bytes(tmp_path) == file_bytes(written)


def test_a_finished_run_costs_nothing_and_changes_nothing(copy: Path, written: Path) -> None:
    write(copy, sines(20, Sines(stop_at=0)))
    assert file_bytes(copy) == file_bytes(written)


def test_a_damaged_shard_is_found_and_made_again(copy: Path, written: Path) -> None:
    path = copy / "images-00001.npy"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(EcglibError, match=r"images-00001\.npy: its bytes differ from its checksum"):
        ImageStore.open(copy).verify()
    write(copy, sines(20, Sines(stop_at=4)))
    assert file_bytes(copy) == file_bytes(written)


def test_images_of_other_data_or_settings_are_not_mixed(copy: Path) -> None:
    with pytest.raises(EcglibError, match="images of other data, settings or code"):
        write(copy, sines(20, fingerprint="others"))
    with pytest.raises(EcglibError, match="images of other data, settings or code"):
        write_images(sines(20), FilterSettings(), ImageSettings(size=32), copy)


def shorten_manifest(directory: Path) -> None:
    manifest = pd.read_parquet(directory / "manifest.parquet")
    manifest.iloc[:-1].to_parquet(directory / "manifest.parquet", index=False)


def shorten_state(directory: Path) -> None:
    state = json.loads((directory / "checksums.json").read_text())
    (directory / "checksums.json").write_text(json.dumps(state | {"n_images": 19}))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


DAMAGE = {
    "short manifest": (shorten_manifest, "manifest has 19 rows, the shards 20 images"),
    "wrong number": (shorten_state, "says 19"),
    "shard cut short": (lambda d: truncate(d / "images-00000.npy"), "images-00000.npy: cut short"),
    "shard gone": (lambda d: (d / "images-00002.npy").unlink(), "images-00002.npy: no such file"),
    "no array": (lambda d: (d / "images-00000.npy").write_text("no"), "images-00000.npy: cut short or not"),
    "floats": (lambda d: np.save(d / "images-00000.npy", np.zeros((8, 4, 4))), "not uint8 images"),
    "manifest gone": (lambda d: (d / "manifest.parquet").unlink(), "manifest.parquet: cannot be read"),
    "no checksums": (lambda d: (d / "checksums.json").unlink(), "holds no images"),
    "broken checksums": (lambda d: (d / "checksums.json").write_text("[]"), "cannot be read; delete"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders_give_one_line(copy: Path, damage: str) -> None:
    spoil, message = DAMAGE[damage]
    spoil(copy)
    with pytest.raises(EcglibError, match=message) as caught:
        ImageStore.open(copy)
    assert "\n" not in str(caught.value)


def test_data_hash_follows_the_data(tmp_path: Path, written: Path) -> None:
    write(tmp_path / "same", sines(20))
    write(tmp_path / "fewer", sines(19))
    expected = ImageStore.open(written).data_hash
    assert ImageStore.open(tmp_path / "same").data_hash == expected
    assert ImageStore.open(tmp_path / "fewer").data_hash != expected


class Faulty(Sines):
    """Row 2 lacks samples, row 5 is flat in one lead, row 9 in all, 11 is too short; 13 has an odd rate."""

    def read_many(self, rows: Rows) -> list[Record]:
        return [self.spoilt(row, record) for row, record in zip(rows, super().read_many(rows), strict=True)]

    def spoilt(self, row: int, record: Record) -> Record:
        waveform = record.waveform.copy()
        waveform[1, 100] = np.nan if row == 2 else waveform[1, 100]
        waveform[{5: [3], 9: list(range(8))}.get(row, [])] = 0.25
        return replace(
            record,
            waveform=waveform[:, : 2400 if row == 11 else None],
            sampling_rate=499.987654321 if row == 13 else 500,
        )


@pytest.mark.parametrize("workers", [1, 2])
def test_faults_are_counted_and_what_cannot_be_drawn_is_a_blank_page(
    tmp_path: Path, written: Path, workers: int
) -> None:
    write(tmp_path, sines(13, Faulty()), workers=workers)
    store, whole = ImageStore.open(tmp_path), ImageStore.open(written)
    found = {row: text for row, text in enumerate(store.manifest.faults) if text}
    assert found == {2: "missing samples", 5: "flat lead", 9: "all leads flat", 11: "too short"}
    assert np.flatnonzero(~store.manifest.usable).tolist() == [2, 9, 11]
    assert (store.pixels([2, 9, 11]) == 255).all()
    fine = [row for row in range(13) if row not in found]
    assert np.array_equal(store.pixels(fine), whole.pixels(fine))
    assert (store.pixels([5]) < 255).any()
    assert store.manifest.missing_samples.tolist() == [0, 0, 1] + [0] * 10
    assert store.manifest.lacking_s[11] == pytest.approx(0.2)


def test_thresholds_are_part_of_the_recipe(copy: Path) -> None:
    with pytest.raises(EcglibError, match="images of other data, settings or code"):
        write(copy, sines(20), quality_settings=QualitySettings(amplitude_mv=1))


def test_a_damaged_record_of_faults_is_made_again(copy: Path, written: Path) -> None:
    (copy / "quality-00001.parquet").write_bytes(b"no table")
    write(copy, sines(20, Sines(stop_at=4)))
    assert file_bytes(copy) == file_bytes(written)


def test_a_record_that_cannot_be_prepared_is_named(tmp_path: Path) -> None:
    with pytest.raises(EcglibError, match="record r13: sampling rate"):
        write(tmp_path, sines(14, Faulty()))


def test_tokens_come_back_and_know_their_images(tmp_path: Path) -> None:
    tokens = np.arange(3 * 196, dtype=np.uint16).reshape(3, 196)
    write_tokens(tmp_path / "tokens.npy", tokens, "abc")
    mapped = read_tokens(tmp_path / "tokens.npy", "abc")
    assert isinstance(mapped, np.memmap)
    assert np.array_equal(mapped, tokens)
    with pytest.raises(EcglibError, match="tokens of other images"):
        read_tokens(tmp_path / "tokens.npy", "def")
    (tmp_path / "tokens.json").unlink()
    with pytest.raises(EcglibError, match=r"tokens\.json: missing or broken"):
        read_tokens(tmp_path / "tokens.npy")
    with pytest.raises(EcglibError, match="no such file; make the tokens again"):
        read_tokens(tmp_path / "none.npy")
    with pytest.raises(EcglibError, match="must be uint16"):
        write_tokens(tmp_path / "tokens.npy", tokens.astype(np.int64), "abc")


def test_joined_stores_read_like_one(tmp_path: Path) -> None:
    for name, n in (("a", 5), ("b", 3)):
        write(tmp_path / name, sines(n, fingerprint=name))
    stores = tuple(ImageStore.open(tmp_path / name) for name in ("a", "b"))
    joined = JoinedImages(stores)
    both = np.concatenate([store.pixels(np.arange(len(store))) for store in stores])
    rows = np.array([7, 0, 5, 4, 0])
    assert len(joined) == 8
    np.testing.assert_array_equal(joined.pixels(rows), both[rows])
    assert joined.data_hash != JoinedImages(stores[::-1]).data_hash
    for outside in (-1, 8):
        with pytest.raises(EcglibError, match=f"image {outside} is not among"):
            joined.pixels([0, outside])
