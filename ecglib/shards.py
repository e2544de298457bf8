"""Images and tokens as memory-mapped arrays, with the manifest and a checksum of every file.

A folder of images holds `images-00000.npy`, ... (n, size, size) uint8, `quality-00000.parquet`, ... (what is
wrong with each of these ECGs), `manifest.parquet` (one row per image) and `checksums.json`, written anew as
each file is finished: a killed run goes on with the next shard.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ecglib.cohort import Cohort
from ecglib.errors import EcglibError
from ecglib.filtering import FilterSettings, preprocess
from ecglib.image import ImageSettings, draw
from ecglib.pool import in_order
from ecglib.progress import track
from ecglib.provenance import atomic_path, code_hash, digest, file_sha256
from ecglib.quality import QualitySettings, measure, usable
from ecglib.records import LEADS_8, Record

SHARD_SIZE = 512  # images per shard: 25 MB at 224 x 224
CHUNK_SIZE = 64  # images that one worker makes at a time
TOKENIZED_AT_ONCE = 256  # images
BLANK = 255  # a page without ink
_MANIFEST = "manifest.parquet"
_CHECKSUMS = "checksums.json"


@dataclass(frozen=True)
class _Job:
    """All that a worker needs to turn rows of a cohort into images."""

    cohort: Cohort
    filter_settings: FilterSettings
    image_settings: ImageSettings
    quality_settings: QualitySettings

    def draw_rows(self, rows: np.ndarray) -> "_Drawn":
        """Read these rows of the cohort once: images (n, size, size) uint8, and what is wrong with each."""
        size = self.image_settings.size
        pixels, quality = np.full((len(rows), size, size), BLANK, np.uint8), []
        for image, record in zip(pixels, self.cohort.read_many(rows), strict=True):
            judged = self.judge(record)
            quality.append(judged)
            if judged["usable"]:
                try:
                    waveform = preprocess(record.select(LEADS_8), record.sampling_rate, self.filter_settings)
                    image[:] = draw(waveform, self.image_settings)
                except EcglibError as error:
                    raise EcglibError(f"record {record.record_id}: {error}") from error
        return pixels, quality

    def judge(self, record: Record) -> dict[str, Any]:
        """The record's faults, joined by a comma, whether it can be drawn, and what was measured on it."""
        measured = measure(record, self.quality_settings, self.filter_settings.window_s)
        reasons = measured.faults(self.quality_settings)
        return {"faults": ",".join(reasons), "usable": usable(reasons), **asdict(measured)}


_Drawn = tuple[np.ndarray, list[dict[str, Any]]]


def write_images(
    cohort: Cohort,
    filter_settings: FilterSettings,
    image_settings: ImageSettings,
    directory: Path,
    *,
    quality_settings: QualitySettings | None = None,
    rows: Sequence[int] | np.ndarray | None = None,
    workers: int | None = None,
) -> None:
    """Draw records of the cohort (all, or those at the positions `rows`) into `directory`.

    The manifest gains `faults` (reasons of `quality.FAULTS` joined by a comma, "" if fine), `usable` and the
    fields of `quality.Quality`. An ECG that is not usable is a blank page. Shards that are already there and
    whole are kept; the bytes do not depend on `workers` (all cores by default). Raises EcglibError where the
    folder holds images of other data, settings or code, or a record's file cannot be read.
    """
    chosen = np.arange(len(cohort)) if rows is None else np.asarray(rows)
    quality_settings = quality_settings or QualitySettings()
    job = _Job(cohort, filter_settings, image_settings, quality_settings)
    code = code_hash("ecglib.shards")
    settings = [filter_settings, image_settings, quality_settings]
    recipe = digest([cohort.fingerprint, chosen.tolist(), settings, code])
    checksums = _Checksums(directory, recipe, len(chosen))
    names = checksums.shard_names()
    todo = [name for name in names if not (checksums.holds(name) and checksums.holds(_quality_name(name)))]
    chunks = [chunk for name in todo for chunk in _chunks(chosen[checksums.span(name)])]
    with in_order(job.draw_rows, chunks, workers) as made:
        drawn = track(made, "drawing ECGs", len(chunks), "chunk")
        for name in todo:
            _write_shard(directory / name, checksums.span(name), drawn, image_settings.size)
            checksums.add(name, _quality_name(name))
    manifest = cohort.manifest.iloc[chosen].reset_index(drop=True)
    quality = pd.concat([_read_table(directory / _quality_name(name)) for name in names], ignore_index=True)
    _write_table(pd.concat([manifest, quality], axis=1), directory / _MANIFEST)
    checksums.add(_MANIFEST)


def _chunks(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + CHUNK_SIZE] for start in range(0, len(rows), CHUNK_SIZE)]


def _write_shard(path: Path, span: slice, drawn: Iterator[_Drawn], size: int) -> None:
    """Take chunks until the shard is full, and save its images and what was wrong with their ECGs."""
    pixels = np.empty((span.stop - span.start, size, size), np.uint8)
    quality: list[dict[str, Any]] = []
    while len(quality) < len(pixels):
        chunk, judged = next(drawn)
        pixels[len(quality) : len(quality) + len(chunk)] = chunk
        quality += judged
    with atomic_path(path) as partial, open(partial, "wb") as stream:
        np.save(stream, pixels)
    _write_table(pd.DataFrame(quality), path.with_name(_quality_name(path.name)))


def _write_table(table: pd.DataFrame, path: Path) -> None:
    with atomic_path(path) as partial:
        table.to_parquet(partial, index=False)


class _Checksums:
    """What `checksums.json` says: the recipe, the number of images, and the SHA-256 of each finished file."""

    def __init__(self, directory: Path, recipe: str, n_images: int) -> None:
        self.directory = directory
        self.state = {"recipe": recipe, "n_images": n_images, "files": {}}
        if (directory / _CHECKSUMS).exists():
            self.state = _read_checksums(directory)
            if self.state["recipe"] != recipe:
                raise EcglibError(
                    f"{directory} holds images of other data, settings or code; delete it or take another"
                )

    def shard_names(self) -> list[str]:
        return _shard_names(self.state["n_images"])

    def span(self, name: str) -> slice:
        """Positions of the shard's images."""
        start = self.shard_names().index(name) * SHARD_SIZE
        return slice(start, min(start + SHARD_SIZE, self.state["n_images"]))

    def holds(self, name: str) -> bool:
        """Whether the file is finished and unchanged."""
        path = self.directory / name
        return path.exists() and self.state["files"].get(name) == file_sha256(path)

    def add(self, *names: str) -> None:
        self.state["files"] |= {name: file_sha256(self.directory / name) for name in names}
        with atomic_path(self.directory / _CHECKSUMS) as path:
            path.write_text(json.dumps(self.state, indent=1, sort_keys=True), encoding="utf-8")


def _shard_names(n_images: int) -> list[str]:
    return [f"images-{shard:05d}.npy" for shard in range(-(-n_images // SHARD_SIZE))]


def _quality_name(shard_name: str) -> str:
    return shard_name.replace("images", "quality").replace(".npy", ".parquet")


def _read_checksums(directory: Path) -> dict:
    path = directory / _CHECKSUMS
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if {"recipe", "n_images", "files"} <= state.keys():
            return state
    except FileNotFoundError:
        raise EcglibError(
            f"{directory} holds no images: {_CHECKSUMS} is missing; prepare them first"
        ) from None
    except (ValueError, AttributeError):
        pass
    raise EcglibError(f"{path} cannot be read; delete {directory} and prepare the images again")


@dataclass(frozen=True)
class ImageStore:
    """Images of a cohort, memory-mapped: nothing is read until it is asked for.

    manifest: one row per image, as the cohort's, with its quality (see `write_images`). data_hash: over the
    checksums of all files.
    """

    directory: Path
    manifest: pd.DataFrame
    shards: tuple[np.ndarray, ...]
    checksums: dict[str, str]

    @classmethod
    def open(cls, directory: Path) -> "ImageStore":
        """Open a finished folder. Raises EcglibError where a file is missing or does not fit the others."""
        state = _read_checksums(directory)
        names = _shard_names(state["n_images"])
        missing = [name for name in (*names, _MANIFEST) if name not in state["files"]]
        if missing:
            raise EcglibError(
                f"{directory} is not finished: {missing[0]} is missing; prepare the images again"
            )
        shards = tuple(_open_shard(directory / name) for name in names)
        manifest = _read_table(directory / _MANIFEST)
        lengths = [len(shard) for shard in shards]
        expected = [min(SHARD_SIZE, state["n_images"] - start * SHARD_SIZE) for start in range(len(names))]
        if lengths != expected or len(manifest) != state["n_images"]:
            raise EcglibError(
                f"{directory}: the manifest has {len(manifest)} rows, the shards {sum(lengths)} images, "
                f"{_CHECKSUMS} says {state['n_images']}; delete the folder and prepare the images again"
            )
        return cls(directory, manifest, shards, state["files"])

    def __len__(self) -> int:
        """Count the images."""
        return len(self.manifest)

    @property
    def data_hash(self) -> str:
        """16 hexadecimal digits that change with any image or any row of the manifest."""
        return digest(self.checksums)

    def pixels(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Images (n, size, size) uint8 at these positions, in this order; a row may come more than once."""
        chosen = np.asarray(rows, dtype=np.int64)
        outside = (chosen < 0) | (chosen >= len(self))
        if outside.any():
            raise EcglibError(f"image {chosen[outside][0]} is not among the {len(self)} of {self.directory}")
        shard_of, place = np.divmod(chosen, SHARD_SIZE)
        images = np.empty((len(chosen), *self.shards[0].shape[1:]), np.uint8)
        for shard in np.unique(shard_of):
            here = shard_of == shard
            images[here] = self.shards[shard][place[here]]
        return images

    def verify(self) -> None:
        """Compare every file with its checksum. Raises EcglibError naming the first that differs.

        Images in memory that came from no file have nothing to compare.
        """
        if not any(isinstance(shard, np.memmap) for shard in self.shards):
            return
        for name, expected in track(sorted(self.checksums.items()), "checking images", unit="file"):
            path = self.directory / name
            if not path.exists() or file_sha256(path) != expected:
                fault = "its bytes differ from its checksum" if path.exists() else "no such file"
                raise EcglibError(f"{path}: {fault}; prepare the images again")


@dataclass(frozen=True)
class JoinedImages:
    """Images of several cohorts as one corpus, one store behind the other, for pretraining."""

    stores: tuple[ImageStore, ...]

    def __len__(self) -> int:
        """Count the images."""
        return sum(map(len, self.stores))

    @property
    def data_hash(self) -> str:
        """16 hexadecimal digits that change with any image of any store."""
        return digest([store.data_hash for store in self.stores])

    def pixels(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Images (n, size, size) uint8 at these positions of the joined corpus, in this order."""
        chosen = np.asarray(rows, dtype=np.int64)
        bounds = np.cumsum([0, *map(len, self.stores)])
        images = np.empty((len(chosen), *self.stores[0].shards[0].shape[1:]), np.uint8)
        store_of = np.searchsorted(bounds, chosen, side="right") - 1
        for number in np.unique(store_of):
            if not 0 <= number < len(self.stores):
                bad = chosen[store_of == number][0]
                raise EcglibError(f"image {bad} is not among the {len(self)} joined ones")
            here = store_of == number
            images[here] = self.stores[number].pixels(chosen[here] - bounds[number])
        return images

    def verify(self) -> None:
        """Compare every file of every store with its checksum, as `ImageStore.verify`."""
        for store in self.stores:
            store.verify()


def _open_shard(path: Path) -> np.ndarray:
    array = _open_npy(path, "prepare the images again")
    if array.ndim != 3 or array.dtype != np.uint8:
        raise EcglibError(f"{path}: not uint8 images (n, size, size); prepare the images again")
    return array


def _open_npy(path: Path, repair: str) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise EcglibError(f"{path}: no such file; {repair}") from None
    except (ValueError, OSError, EOFError) as error:
        raise EcglibError(f"{path}: cut short or not an array ({error}); {repair}") from error


def _read_table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise EcglibError(f"{path}: cannot be read ({error}); prepare the images again") from error


def tokenize(
    store: ImageStore | JoinedImages, encode: Callable[[np.ndarray], np.ndarray], path: Path
) -> None:
    """Write the tokens of every image, by chunks; encode: pixels (n, size, size) -> tokens (n, patches)."""
    chunks = np.array_split(np.arange(len(store)), max(1, len(store) // TOKENIZED_AT_ONCE))
    tokens = [encode(store.pixels(rows)) for rows in track(chunks, "tokens", unit="chunk")]
    write_tokens(path, np.concatenate(tokens), store.data_hash)


def write_tokens(path: Path, tokens: np.ndarray, data_hash: str) -> None:
    """Save tokens (n, 196) as uint16 .npy, and beside it, as .json, the hash of the images they come from."""
    if tokens.ndim != 2 or tokens.dtype != np.uint16:
        raise EcglibError(f"{path}: tokens must be uint16 (n, patches), not {tokens.dtype} {tokens.shape}")
    with atomic_path(path) as partial, open(partial, "wb") as stream:
        np.save(stream, tokens)
    note = {"data_hash": data_hash, "sha256": file_sha256(path)}
    with atomic_path(path.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(note), encoding="utf-8")


def read_tokens(path: Path, data_hash: str | None = None) -> np.ndarray:
    """Map tokens (n, 196) uint16. Raises EcglibError where they are of other images than `data_hash` says."""
    tokens = _open_npy(path, "make the tokens again")
    try:
        note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EcglibError(f"{path.with_suffix('.json')}: missing or broken; make the tokens again") from error
    if data_hash not in (None, note.get("data_hash")):
        raise EcglibError(f"{path}: tokens of other images than these; make the tokens again")
    return tokens
