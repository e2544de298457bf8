"""What the trained networks of a study see: guesses behind the mask, attention, saliency that is measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from ecglib import pictures
from ecglib.attention import attention_distances
from ecglib.beit import MaskedImageModel, normalise
from ecglib.checkpoints import ENCODER, load_masked_image_model
from ecglib.classifiers import MODELS, Classifier
from ecglib.errors import EcglibError
from ecglib.evidence import sign_pixels
from ecglib.filtering import FilterSettings
from ecglib.grid import Cell
from ecglib.image import ImageSettings
from ecglib.masking import lead_patch_rows
from ecglib.patchbook import GRID
from ecglib.progress import track
from ecglib.records import LEADS_8
from ecglib.saliency import SaliencySettings, grad_cam, lead_share
from ecglib.study import Study
from ecglib.style import KIND_NAMES, Plot, Table, model_name, outcome_name

GUESSED_AT_ONCE = 32  # images


@torch.inference_mode()
def guess_tokens(study: Study, pixels: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Tokens (n, 196) of images: the encoder's guess where `hidden`, bool (n, 196), else the tokenizer's."""
    tokens = study.tokenizer.encode(pixels)
    path = study.encoder_folder / ENCODER
    model = load_masked_image_model(path, vocab_size=study.tokenizer.vocab_size)
    for start in range(0, len(pixels), GUESSED_AT_ONCE):
        part = slice(start, start + GUESSED_AT_ONCE)
        logits = model(normalise(torch.from_numpy(pixels[part])), torch.from_numpy(hidden[part]))
        tokens[part][hidden[part]] = logits.argmax(dim=1).numpy()
    return tokens


def accuracy_by_lead(true: np.ndarray, guessed: np.ndarray, hidden: np.ndarray) -> pd.DataFrame:
    """How many of a lead's hidden tokens are named right: tokens (n, 196) and guesses, hidden bool (n, 196).

    One row a lead: lead, hidden (patches), accuracy, majority (that of always naming the token which is the
    commonest behind the masks in this very lead, the best that one word can do), above (their difference). A
    patch that two leads share counts for each by its share of the lead's band. NaN where nothing is hidden.
    """
    rows = []
    for lead, shares in zip(LEADS_8, lead_patch_rows(), strict=True):
        weights = np.repeat(shares / shares.max(), GRID) * hidden  # (n, 196)
        total = weights.sum()
        counts = np.bincount(true.ravel(), weights.ravel())
        accuracy = (weights * (true == guessed)).sum() / total if total else np.nan
        majority = counts.max() / total if total else np.nan
        row = {"lead": lead, "hidden": total, "accuracy": accuracy, "majority": majority}
        rows.append(row | {"above": accuracy - majority})
    return pd.DataFrame(rows)


def attention_by_layer(study: Study, pixels: np.ndarray) -> dict[str, pd.DataFrame]:
    """`attention.attention_distances` of the pretrained network and of the same before its first step."""
    settings, vocab_size = study.pretraining, study.tokenizer.vocab_size
    path = study.encoder_folder / ENCODER
    networks = {
        "pretrained": load_masked_image_model(path, vocab_size=vocab_size),
        "random weights": MaskedImageModel(settings.size, vocab_size, seed=settings.seed).eval(),
    }
    return {name: attention_distances(network.encoder, pixels) for name, network in networks.items()}


@dataclass(frozen=True)
class Explained:
    """One trained cell's maps (n, size, size) on test ECGs with its outcome; NaN where there is no map."""

    cell: Cell
    rows: np.ndarray
    maps: np.ndarray

    @property
    def has_map(self) -> np.ndarray:
        """Whether Grad-CAM found anything, bool (n,)."""
        return np.isfinite(self.maps.reshape(len(self.maps), -1).sum(axis=1))


def explain(study: Study) -> list[Explained]:
    """Grad-CAM of every model for every outcome, at its smallest and its largest estimable label fraction.

    A fine-tuned cell is taken where there is one, else a head on frozen features; the first split, draw and
    seed. The ECGs are the first test ECGs with the outcome.
    """
    cells = [cell for outcome in study.profile.outcomes for cell in cells_to_explain(study, outcome)]
    n = study.profile.settings(SaliencySettings).n_averaged
    explained = []
    for cell in track(cells, "saliency", unit="cell"):
        in_test = (study.parts(cell.split) == "test").to_numpy()
        rows = np.flatnonzero(in_test & (study.labels(cell.outcome) == 1))[:n]
        classifier = study.trained_classifier(cell)
        if classifier is not None and len(rows):
            explained.append(Explained(cell, rows, _maps(classifier, study.images.pixels(rows))))
    if not explained:
        raise EcglibError("no cell can be explained: none is estimable; take more patients")
    return explained


def cells_to_explain(study: Study, outcome: str) -> list[Cell]:
    """One cell for each model at the smallest and at the largest estimable fraction; none where none is."""
    grid = study.grid(outcome)
    first = [c for c in grid if c.draw == 0 and c.seed == 0 and c.split == grid[0].split]
    one_a_fraction = {cell.fraction: cell for cell in first}
    estimable = sorted(f for f, cell in one_a_fraction.items() if study.rows(cell) is not None)
    found = []
    for fraction in sorted({*estimable[:1], *estimable[-1:]}):
        here = [cell for cell in first if cell.fraction == fraction]
        here.sort(key=lambda cell: cell.kind == "finetuned")  # last, so that it is the one that is kept
        by_model = {cell.model: cell for cell in here}
        found += [by_model[model] for model in MODELS if model in by_model]
    return found


def at_fraction(explained: Sequence[Explained], which: str) -> list[Explained]:
    """Those at the `smallest` or the `largest` fraction of their outcome."""
    extreme = min if which == "smallest" else max
    fractions: dict[str, set[float]] = {}
    for one in explained:
        fractions.setdefault(one.cell.outcome, set()).add(one.cell.fraction)
    return [one for one in explained if one.cell.fraction == extreme(fractions[one.cell.outcome])]


def _maps(classifier: Classifier, pixels: np.ndarray) -> np.ndarray:
    """Maps of all images at once, or one by one where an image has none."""
    try:
        return grad_cam(classifier, pixels)
    except EcglibError:
        maps = np.full(pixels.shape, np.nan, np.float32)
        for place, image in enumerate(pixels):
            try:
                maps[place] = grad_cam(classifier, image[None])[0]
            except EcglibError:  # a zero or constant map: counted in the table, never drawn
                continue
        return maps


def explained_table(explained: Sequence[Explained]) -> Table:
    """Which cells are explained, on how many ECGs, and for how many Grad-CAM found nothing."""
    rows = [
        {
            "outcome": outcome_name(one.cell.outcome),
            "labels": f"{100 * one.cell.fraction:g} %",
            "model": model_name(one.cell.model),
            "trained": KIND_NAMES[one.cell.kind],
            "test ECGs with the outcome": len(one.rows),
            "without a map": int((~one.has_map).sum()),
        }
        for one in explained
    ]
    return Table(pd.DataFrame(rows).set_index(["outcome", "labels", "model"]))


def panel(study: Study, explained: Sequence[Explained]) -> Plot:
    """The form of the paper's Fig. 5: a row for each outcome and example, a column for each model."""
    n = study.profile.settings(SaliencySettings).n_examples
    outcomes = list(dict.fromkeys(one.cell.outcome for one in explained))
    shown = {o: next(one.rows[:n] for one in explained if one.cell.outcome == o) for o in outcomes}
    pixels = study.images.pixels(np.concatenate(list(shown.values())))
    maps: dict[str, np.ndarray] = {}
    for model in (m for m in MODELS if any(one.cell.model == m for one in explained)):
        of = {one.cell.outcome: one.maps[:n] for one in explained if one.cell.model == model}
        nothing = {o: np.full((len(rows), *pixels.shape[1:]), np.nan) for o, rows in shown.items()}
        maps[model_name(model)] = np.concatenate([of.get(o, nothing[o]) for o in outcomes])
    names = [outcome_name(o) for o, rows in shown.items() for _ in rows]
    return pictures.saliency(pixels, maps, names)


def lead_shares(explained: Sequence[Explained]) -> pd.DataFrame:
    """Mean share of saliency in each lead's band: outcome, model, fraction, kind, n, one column a lead."""
    rows = []
    for one in explained:
        shares = [lead_share(a_map) for a_map in one.maps[one.has_map]]
        mean = np.mean(shares, axis=0) if shares else np.full(len(LEADS_8), np.nan)
        head = {name: getattr(one.cell, name) for name in ("outcome", "model", "fraction", "kind")}
        rows.append(head | {"n": int(one.has_map.sum())} | dict(zip(LEADS_8, mean, strict=True)))
    return pd.DataFrame(rows)


def pointing(study: Study, explained: Sequence[Explained]) -> pd.DataFrame:
    """How much of the saliency lies on the pixels of the outcome's sign, beside their share of the picture.

    Columns: outcome, model, fraction, kind, n, n_unsigned, on_sign, sign_area, on_ink, ink_area (shares,
    means over n ECGs). A model that looks nowhere in particular has on_sign equal to sign_area. ECGs without
    any pixel of the sign (labelled by mistake, or too faint) have no right answer: they are counted in
    n_unsigned and left out. No row where nobody knows the sign.
    """
    filters, image = study.profile.settings(FilterSettings), study.profile.settings(ImageSettings)
    rows = []
    for one in explained:
        kept = one.rows[one.has_map]
        signs = (
            sign_pixels(study.cohort, kept.tolist(), one.cell.outcome, filters, image) if len(kept) else None
        )
        if signs is None:
            continue
        shows = signs.any(axis=(1, 2))
        if not shows.any():
            continue
        maps = one.maps[one.has_map][shows]
        weights = maps / maps.sum(axis=(1, 2), keepdims=True)
        row = {name: getattr(one.cell, name) for name in ("outcome", "model", "fraction", "kind")}
        row |= {"n": int(shows.sum()), "n_unsigned": int((~shows).sum())}
        for name, mask in (("sign", signs[shows]), ("ink", study.images.pixels(kept[shows]) < 255)):
            row |= {f"on_{name}": (weights * mask).sum(axis=(1, 2)).mean(), f"{name}_area": mask.mean()}
        rows.append(row)
    return pd.DataFrame(rows)


def pointing_table(study: Study, explained: Sequence[Explained]) -> Table:
    """`pointing` in words; one line that says so where nobody knows the sign."""
    table = pointing(study, explained)
    if table.empty:
        return Table({"evidence": ["not known: nobody has marked it in these recordings"]})
    words = pd.DataFrame(
        {
            "outcome": table.outcome.map(outcome_name),
            "labels": [f"{100 * fraction:g} %" for fraction in table.fraction],
            "model": table.model.map(model_name),
            "ECGs": table.n,
            "left out: no sign": table.n_unsigned,
            "saliency on the sign (%)": (100 * table.on_sign).round(1),
            "area of the sign (%)": (100 * table.sign_area).round(1),
            "factor, sign": (table.on_sign / table.sign_area).round(2),
            "factor, all ink": (table.on_ink / table.ink_area).round(2),
        }
    )
    return Table(words.set_index(["outcome", "labels", "model"]))
