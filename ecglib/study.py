"""The study: every stage made once, stored under a hash of what made it, and read by the notebooks.

A stage or grid cell lies in `runs/<profile>/<kind>/<key>`; its key hashes the settings, the code, the data
and the stages before it, so asking for what exists costs nothing and nothing stale is ever read.
ECGLIB_RUNS moves `runs/` elsewhere; ECGLIB_DATA names the folder of a profile that reads real records,
ECGLIB_TABLE and ECGLIB_KEY what a hospital's own need besides. ECGLIB_RESULTS names kept predictions
(`ecglib.results`): then nothing is made, and only what they tell can be asked for.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ecglib.checkpoints import COURSE, ENCODER
from ecglib.classical import measure_cohort
from ecglib.classifiers import Classifier, make_classifier
from ecglib.datasets import CohortSettings, DataPaths
from ecglib.domain_shift import ShiftSettings, domain_shift, ecg_rows, natural_images
from ecglib.errors import EcglibError
from ecglib.filtering import FilterSettings
from ecglib.finetune import FinetuneSettings, UnstableError, finetune
from ecglib.grid import Cell, GridSettings
from ecglib.image import ImageSettings
from ecglib.metrics import ScoreSettings
from ecglib.opening import open_data, open_kept, runs_folder
from ecglib.pairs import Pair, against_heads, against_others, differences
from ecglib.preprocessing import fingerprint, require_same
from ecglib.pretrain import PretrainSettings, pretrain
from ecglib.probe import ProbeSettings, cache_features, fit_head
from ecglib.profiles import NOTEBOOKS, Profile, load_profile, meanings, page_key, page_name, pages, word
from ecglib.progress import track
from ecglib.protocols import PROTOCOLS, score_or_lack
from ecglib.provenance import atomic_path, commit, digest, machine
from ecglib.published import TOKENIZER_COURSE, Pretrained, WeightsSettings, load
from ecglib.quality import QualitySettings
from ecglib.shards import ImageStore, read_tokens, tokenize, write_images
from ecglib.splits import DRAWN_BY, SPLITS, assign, label_fraction_rows
from ecglib.stages import BusyError, Stages
from ecglib.style import split_name
from ecglib.tokenizer import (
    AnyTokenizer,
    TokenizerSettings,
    assess,
    load_tokenizer,
    require_alive,
    train_tokenizer,
)

# Never the test rows: what the tokenizer and the encoder see and are judged on.
PRETRAINING_SPLIT = "official"
_DATA_WORDS = {
    "embedded": (),
    "ptbxl": ("ECGLIB_DATA=PTBXL_DIR",),
    "muse": ("ECGLIB_DATA=EXPORTS_DIR", "ECGLIB_TABLE=LABELS_CSV"),
}
LACKS_CLASS = "the label fraction has no patient of one class"


class Study:
    """One profile on one source of data, as a notebook sees it; every stage is made when first asked for."""

    def __init__(
        self, profile: Profile, notebook: str, outcome: str | None = None, data: DataPaths | None = None
    ):
        self.data, self.notebook, self.outcome = data or DataPaths(), notebook, outcome
        self.folder = runs_folder(profile, self.data)
        self.started = time.time()
        self.stages = Stages(self.folder, page_name(notebook, outcome))
        self._parts: dict[str, pd.Series] = {}  # by split
        self._rows: dict[tuple, dict[str, np.ndarray] | None] = {}  # by outcome, split, fraction and draw
        self._row_hashes: dict[tuple, str] = {}  # of these rows
        self._hashes: dict[str, str] = {}  # of labels, by outcome
        self.kept = open_kept(profile, self.data.results) if self.data.results else None
        self.profile, self.cohort = open_data(profile, self.data, self.kept)
        if outcome is not None and outcome not in self.profile.outcomes:
            known = ", ".join(self.profile.outcomes)
            raise EcglibError(f"outcome {outcome!r}: profile {profile.name} has {known}; take one of these")

    @classmethod
    def open(
        cls, profile: str, notebook: str, *, outcome: str | None = None, overrides: str = "", **settings: Any
    ) -> "Study":
        """Open a study from a notebook's parameters; settings that are None keep the profile's value."""
        own = [f"{notebook}.{name}={word(value)}" for name, value in settings.items() if value is not None]
        loaded = load_profile(profile, [*overrides.split(), *own])
        return cls(loaded, notebook, outcome, DataPaths.from_environment())

    # --- the stages, in the order in which an ECG goes through them ---

    @property
    def data_dir(self) -> Path | None:
        """The folder of PTB-XL, where its ECGs are the source."""
        own = self.profile.settings(CohortSettings).source == "ptbxl" and not self.kept
        return self.data.folder if own else None

    @cached_property
    def preprocessing(self) -> dict[str, Any]:
        """Fingerprint of how this study draws an ECG; tokenizer and encoder keep it."""
        return fingerprint(self.profile.settings(FilterSettings), self.profile.settings(ImageSettings))

    @cached_property
    def images(self) -> ImageStore:
        """Every ECG as an image. EcglibError where only predictions are kept."""
        if self.kept:
            raise EcglibError(f"{self.kept.folder} keeps predictions, no images: name ECGs with --data DIR")
        filters, image = self.profile.settings(FilterSettings), self.profile.settings(ImageSettings)
        quality = self.profile.settings(QualitySettings)
        # Labels are not drawn: another definition of STEMI needs no other image.
        source = asdict(self.profile.settings(CohortSettings)) | {"stemi_definition": None, "hcm_rule": None}
        made_by = {"source": source, "data": self.cohort.fingerprint, "filter": filters, "image": image}
        made_by["quality"] = quality
        made_by["drawn"] = self.preprocessing["digest"]  # changes with a library that draws otherwise

        def make(folder: Path) -> None:
            write_images(self.cohort, filters, image, folder, quality_settings=quality)

        folder = self.stages.make("images", made_by, ("ecglib.shards", "ecglib.datasets"), make)
        return ImageStore.open(folder)

    @cached_property
    def manifest(self) -> pd.DataFrame:
        """One row per ECG: the cohort's, with its faults, whether it is usable, and what was measured."""
        if self.kept:
            return self.kept.manifest
        own = self.cohort.manifest  # which may have an outcome more than when the images were drawn
        return own.join(self.images.manifest.drop(columns=list(own.columns), errors="ignore"))

    @cached_property
    def usable_rows(self) -> np.ndarray:
        """Rows whose ECG could be drawn."""
        return np.flatnonzero(self.manifest.usable)

    @cached_property
    def pretraining_rows(self) -> np.ndarray:
        """Rows that tokenizer and encoder learn from: the training part of the official split."""
        return np.flatnonzero(self.parts(PRETRAINING_SPLIT) == "train")

    @property
    def seen_rows(self) -> np.ndarray:
        """Rows that tokenizer and encoder have seen, without labels: published weights saw PTB-XL alone.

        The generated ECGs that they learnt from are of other patients than the embedded cohort's.
        """
        published = self.profile.settings(WeightsSettings).weights
        if published and self.profile.settings(CohortSettings).source != "ptbxl":
            return np.empty(0, np.int64)
        return self.pretraining_rows

    def seen_of_test(self, split: str) -> float:
        """Share of the ECGs that a split tests on that `seen_rows` holds."""
        tested = np.flatnonzero(self.parts(split) == "test")
        return float(np.isin(tested, self.seen_rows).mean()) if len(tested) else 0.0

    @property
    def pages(self) -> set[str]:
        """The notebooks that can be made of this study: of kept predictions not all."""
        return {notebook for notebook, _ in pages(self.profile, of_predictions=bool(self.kept)).values()}

    @cached_property
    def split_names(self) -> dict[str, str]:
        """What readers call each split: with the share of its test ECGs that HeartBEiT has seen, if any."""
        return {split: split_name(split, self.seen_of_test(split)) for split in SPLITS}

    @cached_property
    def weights(self) -> Pretrained | None:
        """The published weights that the profile names; None where it trains its own.

        EcglibError where they are not there, or learnt from images drawn otherwise than this study's.
        """
        name = self.profile.settings(WeightsSettings).weights
        if not name:
            return None
        found = load(name)
        require_same(found.metadata["preprocessing"], self.preprocessing, found.folder)
        self.stages.note(f"published weights {name}", "weights", found.key, True, 0)
        return found

    @cached_property
    def tokenizer(self) -> AnyTokenizer:
        """The tokenizer: the published one, or trained on the training part."""
        if self.weights:
            return self.weights.tokenizer
        settings = self.profile.settings(TokenizerSettings)
        made_by = {"images": self.images.data_hash, "settings": settings}

        def make(folder: Path) -> None:
            described = {"preprocessing": self.preprocessing}
            train_tokenizer(self.images, self.pretraining_rows, settings, folder, described)

        self._tokenizer_folder = self.stages.make("tokenizer", made_by, ("ecglib.tokenizer",), make)
        return load_tokenizer(self._tokenizer_folder)

    @cached_property
    def tokenizer_history(self) -> pd.DataFrame:
        """The course of the tokenizer's training."""
        if self.weights:
            return self.weights.history(TOKENIZER_COURSE)
        _ = self.tokenizer
        return pd.read_parquet(self._tokenizer_folder / COURSE)

    @cached_property
    def held_out_rows(self) -> np.ndarray:
        """Rows on which the tokenizer is judged: the validation part, at most 512 of them."""
        return np.flatnonzero(self.parts(PRETRAINING_SPLIT) == "validation")[:512]

    @cached_property
    def token_report(self) -> dict[str, float]:
        """How alive the tokenizer is on held-out images."""
        return assess(self.tokenizer, self.images.pixels(self.held_out_rows))

    @cached_property
    def tokens(self) -> np.ndarray:
        """Token ids of every image (n, 196); refused where the tokenizer is dead."""
        tokenizer = self.tokenizer
        require_alive(self.token_report)
        words = self.weights.key if self.weights else self._tokenizer_folder.name
        made_by = {"tokenizer": words, "images": self.images.data_hash}

        def make(folder: Path) -> None:
            tokenize(self.images, tokenizer.encode, folder / "tokens.npy")

        folder = self.stages.make("tokens", made_by, ("ecglib.tokenizer",), make)
        return read_tokens(folder / "tokens.npy", self.images.data_hash)

    @cached_property
    def encoder_folder(self) -> Path:
        """Folder of the pretrained encoder: `encoder.safetensors` and `history.parquet`."""
        if self.weights:
            return self.weights.folder
        settings = self.profile.settings(PretrainSettings)
        tokens, vocab_size = self.tokens, self.tokenizer.vocab_size
        tokenizer_sha256 = self.tokenizer.metadata["weights_sha256"]
        made_by = {
            "tokenizer": self._tokenizer_folder.name,
            "images": self.images.data_hash,
            "settings": settings,
        }

        def make(folder: Path) -> None:
            described = {"preprocessing": self.preprocessing, "tokenizer_sha256": tokenizer_sha256}
            rows = self.pretraining_rows
            pretrain(self.images, tokens, rows, vocab_size, settings, folder, metadata=described)

        return self.stages.make("encoder", made_by, ("ecglib.pretrain",), make)

    @cached_property
    def pretraining_history(self) -> pd.DataFrame:
        """Loss, accuracy and learning rate over the steps of pretraining."""
        if self.weights:
            return self.weights.history()
        return pd.read_parquet(self.encoder_folder / COURSE)

    @cached_property
    def measurements(self) -> pd.DataFrame:
        """Classical measurements, age and sex of every ECG, on the seconds that are drawn."""
        filters = self.profile.settings(FilterSettings)
        made_by = {"images": self.images.data_hash, "data": self.cohort.fingerprint, "filter": filters}

        def make(folder: Path) -> None:
            with atomic_path(folder / "measurements.parquet") as path:
                measure_cohort(self.cohort, self.usable_rows, filters).to_parquet(path, index=False)

        folder = self.stages.make("measurements", made_by, ("ecglib.classical", "ecglib.datasets"), make)
        return pd.read_parquet(folder / "measurements.parquet")

    @cached_property
    def pretraining(self) -> PretrainSettings:
        """How the encoder was pretrained: here, or where the published weights were made."""
        return self._as_made(self.profile.settings(PretrainSettings))

    def _as_made(self, settings: Any) -> Any:
        """Settings of a training: of that which made the published weights, where the profile names some."""
        made = {PretrainSettings: "metadata", TokenizerSettings: "tokenizer"}.get(type(settings))
        if made is None or self.kept or not self.weights:
            return settings
        described = self.weights.metadata if made == "metadata" else self.weights.tokenizer.metadata
        known = {field.name for field in fields(settings)}
        return replace(settings, **{k: v for k, v in described["settings"].items() if k in known})

    @property
    def size(self) -> str:
        """The name of HeartBEiT's network."""
        return self.weights.model.size if self.weights else self.profile.settings(PretrainSettings).size

    @cached_property
    def distances(self) -> pd.DataFrame:
        """The table of `domain_shift` between this study's images and photographs."""
        if self.kept:
            return self.kept.distances
        settings = self.profile.settings(ShiftSettings)
        ecgs = self.images.pixels(ecg_rows(self.usable_rows, settings))
        return domain_shift(ecgs, natural_images(settings.size).pixels, settings)[0]

    # --- the experiment ---

    def parts(self, split: str) -> pd.Series:
        """The part of each row: train, validation, test, external, or excluded where it cannot be drawn."""
        if split not in self._parts:
            self._parts[split] = assign(self.manifest, split)
        return self._parts[split]

    def rows(self, cell: Cell) -> dict[str, np.ndarray] | None:
        """Row positions by part, with the cell's fraction for training; None where it is not estimable."""
        key = _rows_key(cell)
        if key not in self._rows:
            self._rows[key] = self._find_rows(cell)
        return self._rows[key]

    def _find_rows(self, cell: Cell) -> dict[str, np.ndarray] | None:
        part = self.parts(cell.split).where(self.labels(cell.outcome) >= 0)  # nobody said: no part
        train = label_fraction_rows(
            self.cohort.manifest, part, cell.outcome, cell.fraction, cell.draw, DRAWN_BY[cell.split]
        )
        if train is None:
            return None
        scored = {name: np.flatnonzero(part == name) for name in ("validation", "test", "external")}
        return {"train": train, **{name: rows for name, rows in scored.items() if len(rows)}}

    def relabelled(self, outcome: str, labels: np.ndarray) -> "Study":
        """The same study with other labels (n,) of one outcome: its images and features, cells of its own."""
        other = copy.copy(self)
        other.__dict__.pop("manifest", None)
        other._rows, other._row_hashes, other._hashes = {}, {}, {}
        manifest = self.cohort.manifest.assign(**{outcome: labels.astype(np.int8)})
        other.cohort = replace(self.cohort, manifest=manifest)
        return other

    def labels(self, outcome: str) -> np.ndarray:
        """0 or 1 for each row, -1 where nobody said."""
        return self.cohort.manifest[outcome].to_numpy(np.int8)

    def classifier(self, cell: Cell) -> Classifier:
        """The cell's untrained classifier."""
        encoder = self.encoder_folder / ENCODER if cell.model == "heartbeit" else None
        return make_classifier(
            cell.model, size=self.size, encoder_path=encoder, seed=cell.seed, preprocessing=self.preprocessing
        )

    def trained_classifier(self, cell: Cell) -> Classifier | None:
        """The cell's classifier with the weights that were best on validation; None where not estimable."""
        if self.predictions(cell) is None:
            return None
        classifier = self.classifier(cell)
        classifier.load_trained(self._cell_folder(cell) / "weights.safetensors")
        return classifier

    def predictions(self, cell: Cell) -> pd.DataFrame | None:
        """The cell's predictions at every scored step; None where it is not estimable (`lack` says why)."""
        rows = self.rows(cell)
        if rows is None:
            return None
        if self.kept:
            self.stages.note(str(cell), "cells", digest(cell), True, 0)
            return self.kept.predictions(cell)
        path = self._cell_folder(cell, rows) / "predictions.parquet"
        return pd.read_parquet(path) if path.exists() else None

    def lack(self, cell: Cell) -> str:
        """Why a cell is not estimable: a class has no patient, training became unstable; '' where it is."""
        rows = self.rows(cell)
        if rows is None:
            return LACKS_CLASS
        if self.kept:
            return self.kept.lack(cell)
        path = self._cell_folder(cell, rows) / "unstable.txt"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def existing(self, cell: Cell) -> Path | None:
        """The folder of a cell that was made; None where it was not yet."""
        folder = self._cell_place(cell)
        return folder if (folder / "made.json").exists() else None

    def _cell_place(self, cell: Cell) -> Path:
        return self.stages.place(*self._cell_stage(cell))

    def _cell_stage(self, cell: Cell) -> tuple[str, dict[str, Any], tuple[str, ...]]:
        kind: type = FinetuneSettings if cell.kind == "finetuned" else ProbeSettings
        made_by = {
            "cell": cell,
            "settings": self.profile.settings(kind),
            "model": self.model_key(cell.model),
            "images": self.images.data_hash,
            "labels": self._label_hash(cell.outcome),
            "rows": self._row_hash(cell),
        }
        module = "ecglib.finetune" if cell.kind == "finetuned" else "ecglib.probe"
        return "cells", made_by, (module, "ecglib.splits")

    def _cell_folder(self, cell: Cell, rows: dict[str, np.ndarray] | None = None) -> Path:
        kind, made_by, modules = self._cell_stage(cell)

        def make(folder: Path) -> None:
            fit = self._finetune if cell.kind == "finetuned" else self._fit_head
            try:
                predictions = fit(cell, rows or self.rows(cell) or {}, folder / "weights.safetensors")
            except UnstableError as error:  # the paper's ViT was, too: a result of this cell
                (folder / "unstable.txt").write_text(f"unstable: {error}", encoding="utf-8")
                return
            with atomic_path(folder / "predictions.parquet") as path:
                predictions.to_parquet(path, index=False)

        return self.stages.make(kind, made_by, modules, make, str(cell))

    def _label_hash(self, outcome: str) -> str:
        if outcome not in self._hashes:
            self._hashes[outcome] = digest(self.labels(outcome).tolist())
        return self._hashes[outcome]

    def _row_hash(self, cell: Cell) -> str:
        """Hash of the row positions by part: which ECGs the cell learns from and is scored on."""
        key = _rows_key(cell)
        if key not in self._row_hashes:
            rows = self.rows(cell) or {}
            self._row_hashes[key] = digest({part: own.tolist() for part, own in rows.items()})
        return self._row_hashes[key]

    def _finetune(self, cell: Cell, rows: dict[str, np.ndarray], weights: Path) -> pd.DataFrame:
        settings, labels = self.profile.settings(FinetuneSettings), self.labels(cell.outcome)
        return finetune(self.classifier(cell), self.images, rows, labels, settings, cell.seed, weights)

    def _fit_head(self, cell: Cell, rows: dict[str, np.ndarray], weights: Path) -> pd.DataFrame:
        settings, labels = self.profile.settings(ProbeSettings), self.labels(cell.outcome)
        return fit_head(self._features(cell), self.images, rows, labels, settings, weights)

    def _features(self, cell: Cell) -> np.ndarray:
        made_by = {"model": self.model_key(cell.model), "images": self.images.data_hash, "seed": cell.seed}

        def make(folder: Path) -> None:
            cache_features(self.classifier(cell), self.images, folder / "features.npy")

        folder = self.stages.make("features", made_by, ("ecglib.probe",), make)
        return np.load(folder / "features.npy", mmap_mode="r")

    def model_key(self, model: str) -> str:
        """What a model's weights are before it learns: a name, and of HeartBEiT a hash."""
        if model == "heartbeit":
            return self.weights.key if self.weights else self.encoder_folder.name
        return f"{model} {self.size}" if model == "random" else model

    def planned(self, outcome: str) -> list[Cell]:
        """The cells of one outcome that this profile would run, kept or not."""
        return self.profile.settings(GridSettings).cells(outcome)

    def grid(self, outcome: str) -> list[Cell]:
        """The cells of one outcome that this profile runs; of kept results those that were kept."""
        cells = self.planned(outcome)
        if self.kept:
            cells = [cell for cell in cells if cell in self.kept.cells or self.rows(cell) is None]
        return cells

    def scores(self, outcome: str) -> pd.DataFrame:
        """Both protocols' scores of every cell of an outcome: one row a cell, protocol, part and metric.

        Columns: those of the cell and of `protocols.score_cell`; a cell whose fraction lacks a class has one
        row a protocol with `estimable` False and its `reason`, and no number; so has an unstable one.
        """

        def score(cells: list[Cell], settings: ScoreSettings) -> pd.DataFrame:
            scored = track(cells, f"scores of {outcome}", unit="cell")
            return pd.concat([self._score(cell, settings) for cell in scored], ignore_index=True)

        return self._from_predictions("scores", outcome, score, "ecglib.protocols")

    def differences(self, outcome: str) -> pd.DataFrame:
        """HeartBEiT minus each other model, in every cell of an outcome: the table of `pairs.differences`."""
        return self._differences("differences", outcome, against_others)

    def gains_of_tuning(self, outcome: str) -> pd.DataFrame:
        """Each fine-tuned model minus a head on its frozen features: the table of `pairs.differences`."""
        return self._differences("gains_of_tuning", outcome, against_heads)

    def _differences(
        self, kind: str, outcome: str, pairs_of: Callable[[list[Cell]], list[Pair]]
    ) -> pd.DataFrame:
        def compare(cells: list[Cell], settings: ScoreSettings) -> pd.DataFrame:
            return differences(pairs_of(cells), self.predictions, settings, lack_of=self.lack)

        return self._from_predictions(kind, outcome, compare, "ecglib.pairs")

    def _from_predictions(
        self,
        kind: str,
        outcome: str,
        compute: Callable[[list[Cell], ScoreSettings], pd.DataFrame],
        module: str,
    ) -> pd.DataFrame:
        """A table of all cells of an outcome, which are made where they lack; several pages read it."""
        settings, cells = self.profile.settings(ScoreSettings), self.grid(outcome)
        self._make_cells(outcome)

        def make(folder: Path) -> None:
            with atomic_path(folder / f"{kind}.parquet") as path:
                compute(cells, settings).to_parquet(path, index=False)

        made_of = self.kept.fingerprint if self.kept else [self._cell_place(cell).name for cell in cells]
        made_by = {"cells": cells, "made_of": made_of, "settings": settings}
        folder = self.stages.make(kind, made_by, (module, "ecglib.results"), make)
        return pd.read_parquet(folder / f"{kind}.parquet")

    def _score(self, cell: Cell, settings: ScoreSettings) -> pd.DataFrame:
        predictions = self.predictions(cell)
        lack = self.lack(cell) if predictions is None else ""
        tables = [score_or_lack(predictions, lack, protocol, settings) for protocol in PROTOCOLS]
        return pd.concat(tables, ignore_index=True).assign(**asdict(cell))

    def _make_cells(self, outcome: str) -> None:
        """Make what lacks, first where no other page is at work: pages of several outcomes share features."""
        if self.kept:
            return
        later = []
        self.stages.waits = False
        for cell in track(self.grid(outcome), f"cells of {outcome}", unit="cell"):
            try:
                self.predictions(cell)
            except BusyError:
                later.append(cell)
        self.stages.waits = True
        for cell in track(later, f"more cells of {outcome}", unit="cell"):
            self.predictions(cell)

    # --- what made a page ---

    @property
    def data_hash(self) -> str:
        """Hash of the content that made the page: of the images where they are drawn, else of the table."""
        if self.kept:
            return self.kept.head["data_hash"]
        if "images" in self.__dict__:
            return self.images.data_hash
        return digest(self.cohort.manifest.to_json())

    def record(self) -> dict[str, Any]:
        """All that the page's box says; call it last."""
        seconds = round(time.time() - self.started, 1)
        self.stages.log({"event": "closed", "seconds": seconds})
        return {
            "notebook": self.notebook,
            "profile": self.profile.name,
            "outcome": self.outcome,
            "key": self.page_key(),
            "source": self.cohort.name,
            "data_hash": self.data_hash,
            "predictions": self.kept.summary if self.kept else "",
            "parameters": self._parameters(),
            "commit": commit(),
            "machine": machine(),
            "wall_seconds": seconds,
            "made": self.stages.made,
            "command": self.command(),
        }

    def page_key(self) -> str:
        """Hash of all that a page depends on, as `ecglib run` plans it."""
        return page_key(self.profile, self.notebook, self.outcome, self.cohort.fingerprint)

    def command(self) -> str:
        """The command that makes this page's notebook again, from the project's folder."""
        overrides = self.profile.overrides_for(self.notebook)
        profile = Path(self.profile.reference).name  # of a reader's own file: its folder is nobody's business
        kept = [f"ECGLIB_RESULTS=book/results/{self.profile.name}"] if self.kept else None
        words = [
            *(kept or _DATA_WORDS[self.profile.settings(CohortSettings).source]),
            f"papermill notebooks/{self.notebook}.ipynb out.ipynb -p profile {profile}",
            f"-p outcome {self.outcome}" if self.outcome else "",
            f'-p overrides "{overrides}"' if overrides else "",
        ]
        return " ".join(word for word in words if word)

    def _parameters(self) -> list[dict[str, Any]]:
        meaning, changed = meanings(self.notebook), self.profile.overrides.get(self.notebook, {})
        in_profile = self.profile.values[self.notebook]
        used = {owner: self.profile.settings(owner) for owner in NOTEBOOKS[self.notebook].settings}
        as_made = {owner: self._as_made(settings) for owner, settings in used.items()}

        def set_by(owner: type, name: str) -> str:
            if as_made[owner] is not used[owner]:
                return "weights"
            return "changed" if name in changed else "profile" if name in in_profile else "default"

        return [
            {
                "name": name,
                "value": value if not isinstance(value, tuple) else list(value),
                "meaning": meaning[name],
                "set_by": set_by(owner, name),
            }
            for owner, settings in as_made.items()
            for name, value in asdict(settings).items()
        ]


def _rows_key(cell: Cell) -> tuple[str, str, float, int]:
    """What decides a cell's rows; its model, kind and seed do not."""
    return cell.outcome, cell.split, cell.fraction, cell.draw
