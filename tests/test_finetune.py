"""Fine-tuning learns what is there, from training rows only, and reports every scored step, repeatably."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ecglib import finetune as module
from ecglib.classifiers import Classifier, make_classifier
from ecglib.errors import EcglibError
from ecglib.finetune import FinetuneSettings, UnstableError, finetune, predict

N, SIZE = 96, 16
ROWS = {
    "train": np.arange(0, 40),
    "validation": np.arange(40, 60),
    "test": np.arange(60, 80),
    "external": np.arange(80, 96),
}
LABELS = (np.arange(N) % 2).astype(np.int8)
QUICK = FinetuneSettings(steps=12, batch_size=8, max_learning_rate=0.05, score_points=3, precision="32-true")


@dataclass
class Images:
    """Noise, with a dark square where the label is 1; remembers which rows were asked for."""

    strength: float = 1.0
    asked: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.manifest = pd.DataFrame(
            {"record_id": [f"r{i}" for i in range(N)], "patient_id": [f"p{i // 2}" for i in range(N)]}
        )
        images = np.random.default_rng(0).integers(150, 256, (N, SIZE, SIZE))
        images[LABELS == 1, 4:10, 4:10] -= round(120 * self.strength)
        self.images = images.astype(np.uint8)

    def __len__(self) -> int:
        return N

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        self.asked.append(rows)
        return self.images[rows]


def tiny(name: str = "mobilenetv2", dropout: float = 0.0) -> Classifier:
    """A network of 100 weights under a real model's name, which decides the optimiser."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(dropout)
        )
        head, half = nn.Linear(24, 2), (0.5, 0.5, 0.5)
    return Classifier(name, backbone, head, mean=half, std=half, cam_layer="1")


@contextmanager
def at_each_step(look: Callable[[torch.optim.Optimizer], None]) -> Iterator[None]:
    hook = register_optimizer_step_post_hook(lambda optimizer, args, kwargs: look(optimizer))
    try:
        yield
    finally:
        hook.remove()


def test_what_is_in_the_images_is_learnt() -> None:
    table = finetune(tiny(), Images(), ROWS, LABELS, QUICK, seed=0)
    for part in ("validation", "test", "external"):
        last = table[(table["part"] == part) & (table["step"] == QUICK.steps)]
        assert roc_auc_score(last["y_true"], last["y_score"]) > 0.95


def test_every_record_of_the_scored_parts_has_one_prediction_at_each_scored_step() -> None:
    store = Images()
    table = finetune(tiny(), store, ROWS, LABELS, QUICK, seed=0)
    assert list(table) == ["record_id", "patient_id", "part", "step", "y_true", "y_score"]
    assert table["y_score"].dtype == np.float32
    assert table["y_score"].between(0, 1).all()
    assert sorted(table["step"].unique()) == [4, 8, 12]
    for part, step in itertools.product(("validation", "test", "external"), (4, 8, 12)):
        rows = table[(table["part"] == part) & (table["step"] == step)]
        known = store.manifest.iloc[ROWS[part]]
        assert rows["record_id"].tolist() == known["record_id"].tolist()
        assert rows["patient_id"].tolist() == known["patient_id"].tolist()
        assert rows["y_true"].tolist() == LABELS[ROWS[part]].tolist()


def test_the_same_call_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    def run(name: str, seed: int) -> tuple[pd.DataFrame, bytes]:
        table = finetune(tiny(dropout=0.3), Images(), ROWS, LABELS, QUICK, seed, tmp_path / name)
        return table, (tmp_path / name).read_bytes()

    first = run("a", 1)
    torch.rand(5)  # whatever else draws numbers does not matter
    before = torch.get_rng_state()
    again, other = run("b", 1), run("c", 2)
    pd.testing.assert_frame_equal(first[0], again[0], check_exact=True)
    assert first[1] == again[1]
    assert not np.array_equal(first[0]["y_score"], other[0]["y_score"])
    assert torch.equal(torch.get_rng_state(), before)


def test_training_takes_every_training_row_once_an_epoch_in_a_new_order_and_no_other_row() -> None:
    store = Images()
    finetune(
        tiny(), store, ROWS, LABELS, FinetuneSettings(steps=0, epochs=3, batch_size=8, score_points=1), 0
    )
    batches = store.asked[:15]  # 40 rows make 5 batches of 8 an epoch
    epochs = np.concatenate(batches).reshape(3, 40)
    assert all(len(batch) == 8 for batch in batches)
    assert all(sorted(epoch) == ROWS["train"].tolist() for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_batch_is_the_whole_training_set_where_that_is_smaller() -> None:
    store = Images()
    finetune(tiny(), store, {**ROWS, "train": np.array([0, 1, 2])}, LABELS, QUICK, seed=0)
    assert all(sorted(batch) == [0, 1, 2] for batch in store.asked[:4])


def test_the_learning_rate_rises_from_a_25th_to_its_peak_and_falls_to_nearly_nothing() -> None:
    rates: list[float] = []
    settings = FinetuneSettings(steps=200, score_points=1, batch_size=2)
    with at_each_step(lambda optimizer: rates.append(optimizer.param_groups[0]["lr"])):
        finetune(tiny(), Images(), ROWS, LABELS, settings, seed=0)
    assert len(rates) == 200
    # The audit of the paper's public code: 4e-5 -> 1e-3 -> 4e-9.
    assert [rates[0], max(rates), rates[-1]] == pytest.approx([4e-5, 1e-3, 4e-9], rel=1e-3)
    assert int(np.argmax(rates)) in range(55, 65)


@pytest.mark.parametrize(
    ("model", "kind", "decay"),
    [
        ("heartbeit", torch.optim.AdamW, 0.01),
        ("random", torch.optim.AdamW, 0.01),
        ("mobilenetv2", torch.optim.Adam, 0.0),
        ("efficientnet_lite2", torch.optim.Adam, 0.0),
    ],
)
def test_heartbeit_gets_adamw_and_the_baselines_adam(model: str, kind: type, decay: float) -> None:
    seen: list[tuple[type, float]] = []
    with at_each_step(
        lambda optimizer: seen.append((type(optimizer), optimizer.param_groups[0]["weight_decay"]))
    ):
        finetune(tiny(model), Images(), ROWS, LABELS, QUICK, seed=0)
    assert set(seen) == {(kind, decay)}


def test_dropout_is_on_in_training_and_off_in_prediction() -> None:
    store, classifier = Images(), tiny(dropout=0.5).eval()
    plain = finetune(tiny(), store, ROWS, LABELS, QUICK, seed=0)
    dropped = finetune(classifier, store, ROWS, LABELS, QUICK, seed=0)
    assert not np.allclose(plain["y_score"], dropped["y_score"], atol=1e-3)
    last = dropped[(dropped["part"] == "test") & (dropped["step"] == QUICK.steps)]["y_score"]
    np.testing.assert_allclose(predict(classifier.train(), store, ROWS["test"], "32-true"), last, atol=1e-6)


def test_the_saved_weights_are_those_of_the_best_validation_step(tmp_path: Path) -> None:
    store = Images(strength=0.15)
    steps = FinetuneSettings(
        steps=12, batch_size=4, max_learning_rate=0.3, score_points=12, precision="32-true"
    )
    table = finetune(tiny(), store, ROWS, LABELS, steps, 3, tmp_path / "weights")
    scores = {
        step: roc_auc_score(rows["y_true"], rows["y_score"])
        for step, rows in table[table["part"] == "validation"].groupby("step")
    }
    best = max(scores, key=scores.__getitem__)
    assert best != 12  # the last step would prove nothing
    fresh = tiny()
    fresh.load_trained(tmp_path / "weights")
    for part in ("validation", "test"):
        expected = table[(table["part"] == part) & (table["step"] == best)]["y_score"]
        np.testing.assert_allclose(predict(fresh, store, ROWS[part], "32-true"), expected, atol=1e-6)


@pytest.mark.parametrize("validation", [[], [40, 42, 44]])
def test_without_both_classes_in_validation_the_last_step_s_weights_are_saved(
    validation: list[int], tmp_path: Path
) -> None:
    store, rows = Images(), {**ROWS, "validation": np.array(validation, int)}
    table = finetune(tiny(), store, rows, LABELS, QUICK, 0, tmp_path / "weights")
    fresh = tiny()
    fresh.load_trained(tmp_path / "weights")
    expected = table[(table["part"] == "test") & (table["step"] == QUICK.steps)]["y_score"]
    np.testing.assert_allclose(predict(fresh, store, ROWS["test"], "32-true"), expected, atol=1e-6)
    assert (table["part"] == "validation").sum() == 3 * len(validation)


def test_a_loss_that_is_no_longer_finite_stops_the_training_and_names_the_step(tmp_path: Path) -> None:
    wild = FinetuneSettings(steps=20, max_learning_rate=1e38, score_points=1, precision="32-true")
    with pytest.raises(UnstableError, match=r"^loss or prediction not finite at step \d+ of 20$"):
        finetune(tiny(), Images(), ROWS, LABELS, wild, 0, tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_predictions_that_are_no_longer_finite_are_never_returned() -> None:
    wild = FinetuneSettings(steps=1, max_learning_rate=1e38, score_points=1, precision="32-true")
    with pytest.raises(UnstableError, match="not finite at step 1 of 1"):
        finetune(tiny(), Images(), ROWS, LABELS, wild, 0)


def test_training_rows_of_one_class_are_refused() -> None:
    for train, found in ((np.array([0, 2, 4]), "hold 0"), (np.array([], int), "hold no record")):
        with pytest.raises(EcglibError, match=f"{found}: both labels 0 and 1 are needed"):
            finetune(tiny(), Images(), {**ROWS, "train": train}, LABELS, QUICK, 0)
    with pytest.raises(EcglibError, match="no rows to predict"):
        finetune(tiny(), Images(), {"train": ROWS["train"]}, LABELS, QUICK, 0)


def test_a_real_network_is_fine_tuned_in_the_machine_s_own_number_format() -> None:
    @dataclass
    class Pages(Images):
        def pixels(self, rows: np.ndarray) -> np.ndarray:
            return np.kron(super().pixels(rows), np.ones((14, 14), np.uint8))

    few = {part: rows[:4] for part, rows in ROWS.items()}
    settings = FinetuneSettings(steps=2, score_points=1)
    table = finetune(make_classifier("random"), Pages(), few, LABELS, settings, seed=0)
    assert len(table) == 12
    assert np.isfinite(table["y_score"]).all()


@given(
    steps=st.integers(0, 300), epochs=st.integers(0, 5), batch=st.integers(1, 64),
    points=st.integers(1, 40), n=st.integers(2, 500),
)  # fmt: skip
def test_scored_steps_rise_to_the_last_one(steps: int, epochs: int, batch: int, points: int, n: int) -> None:
    assume(steps or epochs)
    settings = FinetuneSettings(steps=steps, epochs=epochs, batch_size=batch, score_points=points)
    scored, total = settings.scored_steps(n), settings.total_steps(n)
    assert scored[-1] == total
    assert len(scored) == min(points, total)
    assert scored[0] >= 1
    assert all(a < b for a, b in itertools.pairwise(scored))
    assert total <= (steps or total), "the caps hold both, and one of them is reached"
    within = total * min(batch, n) - (epochs or 10**9) * n
    assert within < min(batch, n)
    assert total == steps or within >= 0
    # Evenly spaced: no gap differs from the mean gap by a whole step or more.
    gaps = np.diff([0, *scored])
    assert np.abs(gaps - total / len(scored)).max() < 1


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), min_size=2, max_size=30))
def test_validation_auroc_is_scikit_learn_s_with_ties(pairs: list[tuple[int, int]]) -> None:
    y_true, y_score = [label for label, _ in pairs], [score for _, score in pairs]
    table = pd.DataFrame({"part": "validation", "y_true": y_true, "y_score": y_score})
    value = module._validation_auroc(table)
    if len(set(y_true)) < 2:
        assert value is None
    else:
        assert value == pytest.approx(roc_auc_score(y_true, y_score), abs=1e-12)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("steps", 0), ("epochs", -1), ("batch_size", 0), ("max_learning_rate", 0.0), ("weight_decay", -1.0),
        ("score_points", 0), ("precision", "fp8"), ("max_learning_rate", float("nan")),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_run_are_refused_by_name(setting: str, value: float | str) -> None:
    with pytest.raises(EcglibError, match=f"{setting}={value}"):
        FinetuneSettings(**{setting: value})  # type: ignore[arg-type]
