"""The page of the public weights says what their files say."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ecglib import beit, score_figures, weights_tables
from ecglib.beit import MaskedImageModel
from ecglib.checkpoints import save_encoder
from ecglib.errors import EcglibError
from ecglib.preprocessing import fingerprint
from ecglib.published import Pretrained, load, publish
from ecglib.tokenizer import Tokenizer, TokenizerSettings, load_tokenizer, make_networks

WORDS = TokenizerSettings(n_hid=8, vocab_size=64)
HEADS = {
    0.01: {"n_labels": 174.0, "sd": 0.02, "draws": 20},
    1.0: {"n_labels": 17418.0, "sd": None, "draws": 1},
}


def row(outcome: str, fraction: float, model: str, auroc: float) -> dict[str, Any]:
    numbers = {"auroc": auroc, "low": auroc - 0.03, "high": auroc + 0.03, "difference": auroc - 0.7}
    numbers |= {"difference_low": auroc - 0.73, "difference_high": auroc - 0.67, "n": 2183, "n_positive": 540}
    return {"outcome": outcome, "fraction": fraction, "model": model, **HEADS[fraction], **numbers}


AUDIT = {"records": 17418, "patients": 15023, "records_of_folds_9_and_10": 0}
AUDIT |= {"patients_of_folds_9_and_10": 2, "seen_of_seed42_test": 0.7971}
FOUND = pd.DataFrame(
    row(outcome, fraction, model, auroc)
    for outcome in ("mi_any", "normal")
    for fraction in HEADS
    for model, auroc in {"heartbeit": 0.75, "random": 0.70, "mobilenetv2": 0.65}.items()
)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretrained:
    monkeypatch.setitem(beit.SIZES, "minute", (12, 2, 2))
    run = tmp_path / "run"
    described = {"settings": asdict(WORDS), "vocab_size": 64, "preprocessing": fingerprint()}
    Tokenizer(*make_networks(WORDS), described).save(run)
    metadata = {
        "preprocessing": fingerprint(),
        "tokenizer_sha256": load_tokenizer(run).metadata["weights_sha256"],
        "settings": {"size": "minute", "steps": 9, "batch_size": 4},
        "commit": "0123456789abcdef",
        "audit": {"PTB-XL": AUDIT},
        "data_hash": "feedbeef",
    }
    save_encoder(run / "encoder.safetensors", MaskedImageModel("minute", 64), metadata)
    history = pd.DataFrame({"step": range(1, 7), "images_per_second": 2.0})
    history.to_parquet(run / "history.parquet")
    publish(run / "encoder.safetensors", run, tmp_path / "public" / "heartbeit_minute")
    return load("heartbeit_minute", tmp_path / "public")


def test_whom_they_have_seen_is_told_as_the_audit_counts_it(model: Pretrained) -> None:
    table = weights_tables.seen(model)
    assert table.loc["PTB-XL"].tolist() == ["17,418", "15,023", "0", "2", "80 %"]


def test_facts_are_those_of_the_files(model: Pretrained) -> None:
    table: Any = weights_tables.facts(model)
    facts = table.iloc[:, 0]
    assert facts["images seen"] == "24 in 6 steps"
    assert facts["planned"] == "36 images"
    assert facts["tokens"] == "64 codes, dvae"
    assert "commit 0123456789ab, images feedbeef" in facts["made"]
    n_parameters = sum(parameter.numel() for parameter in model.model.parameters())
    assert facts["network"].startswith(f"minute, {n_parameters:,} parameters")


def test_probes_are_read_from_beside_the_weights_or_the_command_is_named(model: Pretrained) -> None:
    with pytest.raises(EcglibError, match="run `ecglib probe heartbeit_minute --data PTBXL_DIR`"):
        weights_tables.probes(model)
    FOUND.to_parquet(model.folder / "probes.parquet")
    pd.testing.assert_frame_equal(weights_tables.probes(model), FOUND)


def test_probe_table_gives_score_interval_and_difference() -> None:
    table: Any = weights_tables.probe_table(FOUND)
    few = table.loc[("Any infarction", "174, 20 draws", "HeartBEiT")]
    assert few.tolist() == ["0.750 (0.720-0.780)", "0.020", "+0.050 (+0.020 to +0.080)"]
    assert table.loc[("Any infarction", "17,418", "random weights")].tolist() == [
        "0.700 (0.670-0.730)",
        "",
        "",
    ]


LIMITS = [(0.02, 0.08, "above"), (-0.08, -0.02, "below"), (-0.01, 0.02, "level with")]


@pytest.mark.parametrize(("low", "high", "said"), LIMITS)
def test_sentence_follows_the_interval(model: Pretrained, low: float, high: float, said: str) -> None:
    made = {"commit": "abcdef0123456789", "machine": {"processor": "Some CPU"}}
    (model.folder / "probes.json").write_text(json.dumps({"probes.parquet": made}))
    found = FOUND.assign(difference_low=low, difference_high=high, difference=(low + high) / 2)
    sentence = weights_tables.probe_sentence(model, found)
    assert f"The aim of +0.05 was **{'reached' if low > 0 else 'missed'}**" in sentence
    assert f"**{said}**" in sentence
    assert all(
        fact in sentence for fact in ("174 labels", "2,183 ECGs", "540 with", "abcdef012345", "Some CPU")
    )


def test_figure_has_a_panel_an_outcome_and_a_rung_a_network() -> None:
    figure = score_figures.probes(FOUND)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["Any infarction", "Normal or not"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "HeartBEiT", "random weights", "MobileNetV2",
    ]  # fmt: skip
    lines: Any = figure.axes[0].lines
    points = [line.get_xdata()[0] for line in lines]
    assert points == pytest.approx([0.75, 0.70, 0.65, 0.75, 0.70, 0.65])


LAYERS = pd.DataFrame(
    {"model": model, "layer": layer, "auroc": auroc, "sd": 0.02, "low": auroc - 0.03, "high": auroc + 0.03}
    for model, course in {"heartbeit": (0.71, 0.78, 0.75), "random": (0.74, 0.73, 0.72)}.items()
    for layer, auroc in enumerate(course, start=1)
)


def test_the_layer_that_knows_most_is_named_beside_the_last(model: Pretrained) -> None:
    made = {"layers.parquet": {"commit": "abcdef0123456789", "machine": {"processor": "Some CPU"}}}
    (model.folder / "probes.json").write_text(json.dumps(made))
    said = weights_tables.layer_sentence(model, LAYERS)
    assert said.endswith("Made at commit `abcdef012345` on Some CPU.")
    assert "HeartBEiT: most after block 2 (0.780), 0.750 at the end" in said
    assert "most after block 1 (0.740), 0.720 at the end" in said


def test_the_figure_has_a_line_a_model_over_the_layers() -> None:
    ax: Any = score_figures.by_layer(LAYERS).axes[0]
    assert [line.get_ydata().tolist() for line in ax.lines] == [[0.71, 0.78, 0.75], [0.74, 0.73, 0.72]]
    assert ax.get_xticks().tolist() == [1, 2, 3]
