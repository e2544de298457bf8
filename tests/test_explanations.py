"""Guesses behind the mask and measured saliency, on stand-ins for a study."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ecglib import explanations
from ecglib.attention import even_distances
from ecglib.beit import MaskedImageModel, normalise
from ecglib.checkpoints import save_encoder
from ecglib.classifiers import make_classifier
from ecglib.datasets import Cohort, CohortSettings, open_cohort
from ecglib.errors import EcglibError
from ecglib.evidence import sign_pixels
from ecglib.explanations import Explained
from ecglib.filtering import FilterSettings
from ecglib.grid import Cell, GridSettings
from ecglib.image import ImageSettings
from ecglib.pretrain import PretrainSettings
from ecglib.records import LEADS_8

CELL = Cell("stemi", "heartbeit", "finetuned", "official", 1.0, 0, 0)


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return open_cohort(CohortSettings(n_patients=60))


def grid_study(not_estimable: tuple[float, ...] = ()) -> Any:
    settings = GridSettings(fractions=(0.01, 0.1, 1.0), head_fractions=(0.01, 0.1, 1.0))
    return SimpleNamespace(
        grid=settings.cells,
        rows=lambda cell: None if cell.fraction in not_estimable else {"train": np.arange(9)},
    )


def test_smallest_and_largest_estimable_fractions_are_explained() -> None:
    cells = explanations.cells_to_explain(grid_study(not_estimable=(0.01,)), "stemi")
    assert sorted({cell.fraction for cell in cells}) == [0.1, 1.0]
    assert explanations.cells_to_explain(grid_study(not_estimable=(0.01, 0.1, 1.0)), "stemi") == []
    only = explanations.cells_to_explain(grid_study(not_estimable=(0.01, 0.1)), "stemi")
    assert {cell.fraction for cell in only} == {1.0}
    assert len({cell.model for cell in only}) == len(only), "each model once"


def test_a_fine_tuned_cell_is_preferred_to_a_head() -> None:
    cells = explanations.cells_to_explain(grid_study(), "stemi")
    kinds = {(cell.model, cell.fraction): cell.kind for cell in cells}
    assert kinds["heartbeit", 0.01] == kinds["mobilenetv2", 1.0] == "finetuned"
    assert kinds["mobilenetv2", 0.01] == kinds["efficientnet_lite2", 1.0] == "head"


def test_panels_take_each_outcomes_own_extreme_fraction() -> None:
    fractions = [("hcm", 0.01), ("hcm", 1.0), ("stemi", 0.1), ("stemi", 1.0)]
    nothing = np.zeros((0, 224, 224))
    explained = [
        Explained(replace(CELL, outcome=o, fraction=f), np.array([], int), nothing) for o, f in fractions
    ]
    few = explanations.at_fraction(explained, "smallest")
    assert [(one.cell.outcome, one.cell.fraction) for one in few] == [("hcm", 0.01), ("stemi", 0.1)]
    assert {one.cell.fraction for one in explanations.at_fraction(explained, "largest")} == {1.0}


def study_of(cohort: Cohort) -> Any:
    settings = {FilterSettings: FilterSettings(), ImageSettings: ImageSettings()}
    store = SimpleNamespace(pixels=lambda rows: np.full((len(rows), 224, 224), 255, np.uint8))
    return SimpleNamespace(cohort=cohort, images=store, profile=SimpleNamespace(settings=settings.get))


def test_saliency_on_the_sign_is_measured(cohort: Cohort) -> None:
    rows = np.flatnonzero(cohort.manifest.stemi == 1)[:2]
    signs = sign_pixels(cohort, rows.tolist(), "stemi", FilterSettings(), ImageSettings())
    assert signs is not None
    study = study_of(cohort)
    perfect, even = (Explained(CELL, rows, maps) for maps in (signs.astype(float), np.ones(signs.shape)))
    table: Any = explanations.pointing(study, [perfect, even])
    assert table.on_sign[0] == pytest.approx(1)
    assert table.on_sign[1] == pytest.approx(table.sign_area[1])
    assert table.sign_area[0] == pytest.approx(signs.mean())
    words: Any = explanations.pointing_table(study, [even])
    assert words["factor, sign"].item() == pytest.approx(1)


def test_an_ecg_labelled_by_mistake_is_counted_and_left_out(cohort: Cohort) -> None:
    drawn = cohort.drawn
    assert drawn is not None
    shows = np.flatnonzero(drawn.hcm_severity > 0.3)[:1]
    mistaken = np.flatnonzero(drawn.hcm_true == 0)[:1]  # as if its label said HCM
    study, cell = study_of(cohort), replace(CELL, outcome="hcm")
    maps = np.ones((2, 224, 224))
    alone: Any = explanations.pointing(study, [Explained(cell, shows, maps[:1])])
    both: Any = explanations.pointing(study, [Explained(cell, np.concatenate([shows, mistaken]), maps)])
    assert both[["n", "n_unsigned"]].values.tolist() == [[1, 1]]
    assert both.sign_area[0] == alone.sign_area[0] > 0
    nothing = explanations.pointing(study, [Explained(cell, mistaken, maps[:1])])
    assert nothing.empty


def test_no_number_is_given_where_nobody_knows_the_evidence(cohort: Cohort) -> None:
    class Recordings:
        read_many = cohort.waveforms.read_many

        def evidence(self, rows: object) -> None:
            return None

    study = study_of(replace(cohort, waveforms=Recordings()))
    table = explanations.pointing_table(study, [Explained(CELL, np.arange(2), np.ones((2, 224, 224)))])
    assert "not known" in table.iloc[0, 0]


def test_images_without_a_map_are_counted_and_left_out_of_the_shares() -> None:
    maps = np.zeros((2, 224, 224))
    maps[0, :28] = 1  # the band of lead I
    maps[1] = np.nan
    explained = Explained(CELL, np.arange(2), maps)
    table: Any = explanations.explained_table([explained])
    assert table["without a map"].item() == 1
    shares: Any = explanations.lead_shares([explained])
    assert shares.loc[0, list(LEADS_8)].tolist() == pytest.approx([1] + 7 * [0])


def test_one_image_without_a_map_does_not_spoil_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses_black(classifier: object, pixels: np.ndarray) -> np.ndarray:
        if (pixels == 0).all(axis=(1, 2)).any():
            raise EcglibError("the map is zero")
        return np.ones(pixels.shape, np.float32)

    monkeypatch.setattr(explanations, "grad_cam", refuses_black)
    pixels = np.stack([np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8)])
    maps = explanations._maps(make_classifier("random"), pixels)
    assert np.isnan(maps[0]).all()
    assert (maps[1] == 1).all()


def test_guesses_fill_hidden_patches_only(tmp_path: Path) -> None:
    model = MaskedImageModel("heartbeit_nano", 512, seed=3).eval()
    save_encoder(tmp_path / "encoder.safetensors", model, {})
    known = np.full((2, 196), 7, np.uint16)
    study: Any = SimpleNamespace(
        encoder_folder=tmp_path,
        tokenizer=SimpleNamespace(encode=lambda pixels: known.copy(), vocab_size=512),
    )
    pixels = np.random.default_rng(0).integers(0, 255, (2, 224, 224), np.uint8)
    hidden = np.zeros((2, 196), bool)
    hidden[:, 50:60] = True
    guesses = explanations.guess_tokens(study, pixels, hidden)
    assert (guesses[~hidden] == 7).all()
    with torch.inference_mode():
        logits = model(normalise(torch.from_numpy(pixels)), torch.from_numpy(hidden))
    np.testing.assert_array_equal(guesses[hidden], logits.argmax(dim=1).numpy())


def test_accuracy_is_counted_lead_by_lead() -> None:
    true = np.zeros((2, 14, 14), np.uint16)
    true[:, :, 7:] = 1
    true[0, 0] = 2  # rows 0 and 1 hold lead I, by 4 to 3
    hidden = np.zeros((2, 14, 14), bool)
    hidden[:, 0] = hidden[:, 1] = hidden[:, 13] = True
    guessed = true.copy()
    guessed[:, 1] = 9
    guessed[1, 13, :7] = 9
    table = explanations.accuracy_by_lead(*(a.reshape(2, 196) for a in (true, guessed, hidden)))
    found: Any = table.set_index("lead")
    assert found.accuracy["I"] == pytest.approx(1 / 1.75)
    # Of 2 x 14 x 1.75 patches: token 2 in 14, tokens 0 and 1 in 7 + 14 x 0.75 each.
    assert found.majority["I"] == pytest.approx(17.5 / 49)
    assert found.hidden["I"] == pytest.approx(49)
    assert found.accuracy["II"] == 0  # a quarter of row 1 is lead II's
    assert found.accuracy["V6"] == pytest.approx(0.75)
    assert found.above["V6"] == pytest.approx(0.25)
    assert found.loc[["V1", "V2", "V3", "V4"], "accuracy"].isna().all()


def test_many_images_are_guessed_as_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_encoder(tmp_path / "encoder.safetensors", MaskedImageModel("heartbeit_nano", 64, seed=3), {})
    tokenizer = SimpleNamespace(encode=lambda pixels: np.zeros((len(pixels), 196), np.uint16), vocab_size=64)
    study: Any = SimpleNamespace(encoder_folder=tmp_path, tokenizer=tokenizer)
    pixels = np.random.default_rng(0).integers(0, 255, (5, 224, 224), np.uint8)
    hidden = np.random.default_rng(1).random((5, 196)) < np.linspace(0.1, 0.6, 5)[:, None]
    together = explanations.guess_tokens(study, pixels, hidden)
    monkeypatch.setattr(explanations, "GUESSED_AT_ONCE", 2)
    assert (explanations.guess_tokens(study, pixels, hidden) == together).mean() > 0.999


def test_attention_of_the_pretrained_network_stands_beside_random_weights(tmp_path: Path) -> None:
    model = MaskedImageModel("heartbeit_nano", 64, seed=3)
    with torch.no_grad():
        model.encoder.get_parameter("rel_pos_bias.relative_position_bias_table").normal_(std=3)
    save_encoder(tmp_path / "encoder.safetensors", model, {})
    words, settings = SimpleNamespace(vocab_size=64), PretrainSettings()
    study: Any = SimpleNamespace(encoder_folder=tmp_path, tokenizer=words, pretraining=settings)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 224, 224), np.uint8)
    found = explanations.attention_by_layer(study, pixels)
    assert list(found) == ["pretrained", "random weights"]
    assert [len(table) for table in found.values()] == [12, 12]  # four layers of three heads
    even = even_distances()
    assert found["random weights"].time.to_numpy() == pytest.approx(np.full(12, even["time"]), rel=0.05)
    assert (found["pretrained"].time - even["time"]).abs().max() > 0.1
