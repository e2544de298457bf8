"""Every figure names its axes, and draws the numbers of its table."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import rcParams
from predicted import SPLITS

from ecglib import figures, pictures, score_figures
from ecglib.attention import even_distances
from ecglib.cost import CostSettings, over_utilisation
from ecglib.datasets import Cohort, CohortSettings, open_cohort
from ecglib.image import ImageSettings
from ecglib.masking import draw_masks
from ecglib.records import LEADS_8
from ecglib.splits import assign
from ecglib.style import MODEL_COLOURS, Plot

MODELS = ("heartbeit", "random", "mobilenetv2")
PIXELS = np.full((2, 224, 224), 255, np.uint8)
PIXELS[:, 100:104] = 0


def scores(
    parts: tuple[str, ...] = ("test", "external"), kinds: tuple[str, ...] = ("finetuned", "head")
) -> Any:
    """Scores of three models; at 1 % of the labels nothing is estimable."""
    rng = np.random.default_rng(0)
    rows = []
    for kind in kinds:
        for model in MODELS:
            for fraction in (0.01, 0.1, 1.0):
                cell = {"outcome": "stemi", "model": model, "kind": kind, "split": "official"}
                cell |= {"fraction": fraction, "reference_fraction": fraction, "draw": 0, "seed": 0}
                for protocol in ("honest", "paper"):
                    if fraction == 0.01:
                        rows.append(cell | {"protocol": protocol, "estimable": False})
                        continue
                    for part in parts:
                        for metric in ("auroc", "auprc"):
                            value = rng.uniform(0.6, 0.8)
                            numbers = {"value": value, "low": value - 0.1, "high": value + 0.05}
                            counts = {
                                "n": 100,
                                "n_positive": 20,
                                "prevalence": 0.2,
                                "step": 3,
                                "estimable": True,
                            }
                            rows.append(
                                cell
                                | {"protocol": protocol, "part": part, "metric": metric}
                                | numbers
                                | counts
                            )
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return open_cohort(CohortSettings(n_patients=60))


def axes_of(plot: Plot) -> list[Any]:
    """The panels of a plot, without matplotlib's types, which know only the base classes of what is drawn."""
    return list(plot.axes)


def history() -> pd.DataFrame:
    steps = np.arange(1, 6)
    return pd.DataFrame(
        {"step": steps, "loss": 6.0 / steps, "accuracy": steps / 10, "majority_accuracy": 0.15, "lr": 0.1}
    )


def shares() -> pd.DataFrame:
    return pd.DataFrame(
        [{"outcome": "stemi", "model": m} | dict.fromkeys(LEADS_8, 0.125) | {"I": 0.2} for m in MODELS]
    )


def gains() -> Any:
    """What the paper's choice of the step adds: the scores above, drawn near 0."""
    table = scores()
    return table[(table.protocol == "paper") & table.value.notna()].assign(
        value=lambda t: t.value - 0.6, low=lambda t: t.low - 0.6, high=lambda t: t.high - 0.6
    )


def heads() -> pd.DataFrame:
    """One network's linear heads, from few labels and from all."""
    rows = pd.DataFrame({"outcome": "stemi", "fraction": [0.01, 1.0], "model": "random", "auroc": [0.6, 0.7]})
    return rows.assign(low=rows.auroc - 0.1, high=rows.auroc + 0.1)


def runs() -> list[dict[str, Any]]:
    """A short run of pretraining beside random weights."""
    gain = {"difference": 0.02, "difference_low": -0.01, "difference_high": 0.05}
    return [{"trial": name, "differs": "tokens", **gain} for name in ("random", "trial_tokens")]


def studies() -> pd.DataFrame:
    """Three studies, each read by two intervals; the first misses the truth."""
    known = {"size": "large", "statistic": "score", "metric": "auroc", "truth": 0.88}
    limits = pd.DataFrame({"study": [0, 1, 2], "low": [0.9, 0.86, 0.8], "high": [0.94, 0.89, 0.9]})
    limits["value"] = (limits.low + limits.high) / 2
    return pd.concat([limits.assign(**known, interval=name) for name in ("percentile", "of_mean")])


def looks() -> pd.DataFrame:
    heads = [{"layer": layer, "head": head} for layer in (1, 2) for head in (1, 2, 3)]
    return pd.DataFrame(heads).assign(distance=5.0, time=[1, 2, 3, 4, 5, 6], leads=4.0)


def all_plots(cohort: Cohort) -> dict[str, Any]:
    wave = np.random.default_rng(0).normal(size=(8, 2500))
    tokens = np.arange(392, dtype=np.uint16).reshape(2, 196) % 64
    hidden = draw_masks("uniform", 0, 0, np.arange(2))
    table = scores()
    parts = assign(cohort.manifest, "official")
    pairs = {"ECG and ECG": np.arange(10.0), "ECG and photograph": np.arange(90.0, 110.0)}
    maps = np.random.default_rng(0).random((2, 224, 224), np.float32)
    return {
        "cohort": figures.cohort(cohort.manifest, parts, cohort.outcomes),
        "spectra": figures.spectra({"as recorded": wave, "as drawn": wave / 2}, 500),
        "code_use": figures.code_use(tokens, 64, 0.3),
        "courses": figures.courses(history(), {"loss": "Loss (nats)", "lr": "Learning rate"}),
        "pretraining": figures.pretraining(history(), 512),
        "attention": figures.attention({"one": looks(), "random": looks()}, even_distances(), 5.0),
        "days_over_utilisation": figures.days_over_utilisation(over_utilisation(CostSettings()), {"a": 0.03}),
        "distances": figures.distances(pairs, {"ECG and ECG": 2.14}),
        "histograms": figures.histograms(PIXELS, PIXELS),
        "lead_shares": figures.lead_shares(shares()),
        "over_fractions": score_figures.over_fractions(table, SPLITS),
        "differences": score_figures.differences(table[table.model != "heartbeit"], SPLITS),
        "optimism": score_figures.optimism(table, SPLITS),
        "forest": score_figures.forest(table[table.fraction == 1], SPLITS),
        "probes": score_figures.probes(heads()),
        "by_layer": score_figures.by_layer(heads().assign(layer=1)),
        "trials": score_figures.trials(runs(), 0.05),
        "step_gains": score_figures.step_gains(gains(), SPLITS),
        "coverage": score_figures.coverage(studies()),
        "waveforms": pictures.waveforms({"as recorded": wave, "as drawn": wave / 2}, 500),
        "kinds": pictures.kinds(0),
        "evidence": pictures.evidence(cohort, 0, "stemi"),
        "images": pictures.images({"large": PIXELS[0], "small": PIXELS[0, :112, :112]}, 5.0),
        "patches": pictures.patches(PIXELS[0], 5.0),
        "maps": pictures.maps(PIXELS[0], PIXELS[:1] == 0, ImageSettings(), 5.0),
        "reconstructions": pictures.reconstructions(PIXELS, PIXELS[:, ::2, ::2] / 255),
        "guesses": pictures.guesses(PIXELS, hidden, PIXELS[:, ::2, ::2] / 255),
        "token_maps": pictures.token_maps(PIXELS, tokens, 64),
        "masks": pictures.masks(PIXELS[0], {"uniform": hidden}),
        "mask_shares": pictures.mask_shares({"uniform": hidden.mean(axis=0), "blockwise": hidden[0]}, 5.0),
        "saliency": pictures.saliency(PIXELS, {"with": maps, "without": maps * np.nan}, ["a", "b"]),
    }  # fmt: skip


def hidden_axes(ax: Any) -> bool:
    return not ax.get_visible() or not any(spine.get_visible() for spine in ax.spines.values())


def label_of(ax: Any, way: str) -> str:
    """The axis' own label, or that of the panel with which it shares the axis."""
    siblings = getattr(ax, f"get_shared_{way}_axes")().get_siblings(ax)
    labels = [getattr(sibling, f"get_{way}label")() for sibling in siblings]
    return next((label for label in labels if label), "")


def test_every_axis_has_a_label(cohort: Cohort) -> None:
    public = {
        name
        for module in (figures, pictures, score_figures)
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__ and hasattr(value, "__wrapped__")
    }
    plots = all_plots(cohort)
    assert set(plots) == public, "a figure is not looked at here"
    for name, plot in plots.items():
        assert isinstance(plot, Plot)
        for ax in axes_of(plot):
            if not hidden_axes(ax) and ax.get_label() != "<colorbar>":
                assert label_of(ax, "x"), f"{name}: an axis has no x label"
                assert label_of(ax, "y"), f"{name}: an axis has no y label"


def test_a_plot_shows_itself_as_png_at_the_books_width(cohort: Cohort) -> None:
    png = figures.pretraining(history(), 512)._repr_png_()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(png[16:20], "big") == round(7.5 * 110)


def test_the_notebooks_own_settings_neither_change_nor_are_changed() -> None:
    before = dict(rcParams)
    plain = figures.pretraining(history(), 512)._repr_png_()
    assert dict(rcParams) == before
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"font.size": 30, "xtick.labelsize": 30, "axes.grid": False}.items():
            patch.setitem(rcParams, name, value)  # type: ignore[arg-type]
        assert figures.pretraining(history(), 512)._repr_png_() == plain


def line_values(ax: Any, colour: str) -> np.ndarray:
    marked = [
        line for line in ax.lines if line.get_color() == colour and line.get_marker() not in ("", "None")
    ]
    return np.sort(np.concatenate([np.asarray(line.get_ydata(), float) for line in marked]))


@pytest.mark.parametrize("metric", ["auroc", "auprc"])
def test_scores_over_fractions_are_those_of_the_table(metric: str) -> None:
    table = scores()
    plot = score_figures.over_fractions(table, SPLITS, metric=metric, kind="head")
    for ax, part in zip(axes_of(plot), ("test", "external"), strict=True):
        for model in MODELS:
            chosen = table[(table.model == model) & (table.part == part) & (table.metric == metric)]
            wanted = chosen[(chosen.kind == "head") & (chosen.protocol == "honest")].value
            np.testing.assert_allclose(line_values(ax, MODEL_COLOURS[model]), np.sort(wanted))


def test_fractions_that_are_not_estimable_keep_their_place_and_say_so() -> None:
    ax = axes_of(score_figures.over_fractions(scores(), SPLITS))[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "10", "100"]
    assert [text.get_text() for text in ax.texts if "estimable" in text.get_text()] == ["not\nestimable"]


def test_intervals_are_drawn_from_low_to_high() -> None:
    table = scores(parts=("test",), kinds=("finetuned",))
    (ax,) = axes_of(score_figures.over_fractions(table, SPLITS))
    drawn = np.concatenate([[s[:, 1] for s in c.get_segments()] for c in ax.collections])
    wanted = table[(table.metric == "auroc") & (table.protocol == "honest")][["low", "high"]]
    np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(wanted.to_numpy(), axis=0))


def test_of_several_draws_the_first_has_its_interval_and_the_others_are_dots() -> None:
    first = scores(parts=("test",), kinds=("finetuned",))
    first = first[(first.model == "random") & (first.protocol == "honest") & first.value.notna()]
    others = [first.assign(draw=draw, value=0.9, low=0.1, high=0.95) for draw in (1, 2)]
    table = pd.concat([*others, first])
    wanted = first[first.metric == "auroc"].sort_values("fraction")
    for plot in (score_figures.over_fractions, score_figures.differences):
        (ax,) = axes_of(plot(table, SPLITS))
        (intervals,) = ax.collections
        limits = np.array([segment[:, 1] for segment in intervals.get_segments()])
        np.testing.assert_allclose(limits, wanted[["low", "high"]])
        dots, curve = (line for line in ax.lines if line.get_marker() not in ("", "None"))
        np.testing.assert_allclose(curve.get_ydata(), wanted.value)
        assert list(dots.get_ydata()) == [0.9] * 4


@pytest.mark.parametrize("parts", [("test",), ("test", "external")])
def test_no_legend_is_cut_off(parts: tuple[str, ...]) -> None:
    plot = score_figures.optimism(scores(parts=parts), SPLITS)
    (legend,) = plot.legends
    assert legend.get_window_extent().x1 <= plot.bbox.x1


def test_without_an_external_part_there_is_one_panel() -> None:
    assert len(axes_of(score_figures.over_fractions(scores(parts=("test",)), SPLITS))) == 1


def titles(plot: Plot) -> str:
    """All titles of a plot in one line."""
    return " ".join(ax.get_title(loc="left") for ax in axes_of(plot)).replace("\n", " ")


def test_panels_say_of_which_ecgs_their_scores_are_and_what_pretraining_saw_of_them() -> None:
    table = pd.concat([scores(parts=("test",)), scores(parts=("test",)).assign(split="seed42", n=80)])
    two = pd.concat([table, table.assign(outcome="hcm", n_positive=30)])
    unseen = {"official": "official", "seed42": "seed42"}
    for plot in (score_figures.over_fractions, score_figures.optimism, score_figures.differences):
        told = titles(plot(table, SPLITS))
        assert "Internal test, official 100 ECGs, 20 positive" in told
        assert "seed42 (HeartBEiT saw 80 % of its test ECGs, unlabelled) 80 ECGs, 20 positive" in told
        assert "saw" not in titles(plot(table, unseen))
    assert "STEMI: 80 ECGs, 20 positive HCM: 80 ECGs, 30 positive" in titles(
        score_figures.forest(two, SPLITS)
    )
    moved = pd.concat([gains(), gains().assign(model="random", n_positive=9)]).drop(columns="outcome")
    assert "100 ECGs, 9-20 positive" in titles(score_figures.step_gains(moved, SPLITS))


def test_optimism_fills_the_honest_points_only() -> None:
    table = scores(parts=("test",), kinds=("finetuned",))
    (ax,) = axes_of(score_figures.optimism(table, SPLITS))
    points = [line for line in ax.lines if line.get_marker() not in ("", "None") and len(line.get_xdata())]
    for hollow, protocol in ((True, "paper"), (False, "honest")):
        drawn = [float(p.get_xdata()[0]) for p in points if (p.get_markerfacecolor() == "white") == hollow]
        wanted = table[(table.protocol == protocol) & (table.metric == "auroc")].value
        np.testing.assert_allclose(np.sort(drawn), np.sort(wanted))


def test_intervals_that_miss_the_truth_are_seen_and_counted() -> None:
    for ax in axes_of(score_figures.coverage(studies())):
        assert "2 of 3 hold the truth" in ax.get_title(loc="left")
        holding, missing = (collection.get_segments() for collection in ax.collections)
        assert (len(holding), len(missing)) == (2, 1)
        np.testing.assert_allclose(missing[0], [[1, 0.9], [1, 0.94]])


def test_what_the_choice_of_the_step_adds_is_drawn_for_each_model() -> None:
    table = gains()
    plot = score_figures.step_gains(table, SPLITS)
    for ax, part in zip(axes_of(plot), ("test", "external"), strict=True):
        for model in MODELS:
            chosen = table[(table.model == model) & (table.part == part) & (table.metric == "auroc")]
            wanted = chosen[chosen.kind == "finetuned"].value
            np.testing.assert_allclose(line_values(ax, MODEL_COLOURS[model]), np.sort(wanted))


def test_a_model_has_the_same_colour_in_every_figure() -> None:
    table = scores()
    for plot in (score_figures.over_fractions(table, SPLITS), score_figures.differences(table, SPLITS)):
        for ax in axes_of(plot):
            assert {line.get_color() for line in ax.lines} >= {MODEL_COLOURS[m] for m in MODELS}
    bars = axes_of(figures.lead_shares(shares()))[0].containers
    colours = [bar.patches[0].get_facecolor() for bar in bars]
    assert len(set(colours)) == len(MODELS)


def test_pretraining_shows_loss_accuracy_and_their_baselines() -> None:
    loss, accuracy = axes_of(figures.pretraining(history(), 512))
    np.testing.assert_allclose(loss.lines[0].get_ydata(), history().loss)
    np.testing.assert_allclose(loss.lines[1].get_ydata(), np.log(512))
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), 100 * history().accuracy)
    np.testing.assert_allclose(accuracy.lines[1].get_ydata(), 15.0)


def test_code_use_shows_the_share_of_each_used_code_in_order() -> None:
    tokens = np.repeat([3, 5, 9], [10, 60, 30])
    (stairs,) = axes_of(figures.code_use(tokens, 64, 0.3))[0].patches
    np.testing.assert_allclose(stairs.get_data().values, [60, 30, 10])


def test_lead_shares_are_bars_in_percent() -> None:
    bars = axes_of(figures.lead_shares(shares()))[0].containers[0]
    np.testing.assert_allclose([bar.get_height() for bar in bars], [20] + 7 * [12.5])


def test_a_covered_picture_hides_exactly_the_hidden_patches() -> None:
    mask = np.zeros(196, bool)
    mask[15] = True  # row 1, column 1
    changed = (pictures.cover(PIXELS[0], mask) != PIXELS[0][:, :, None]).any(axis=2)
    assert changed[16:32, 16:32].all()
    assert changed.sum() == 16 * 16


def test_evidence_of_a_recording_is_said_to_be_unknown(cohort: Cohort) -> None:
    class Recordings:
        read_many = cohort.waveforms.read_many

        def evidence(self, rows: object) -> None:
            return None

    from dataclasses import replace

    plot = pictures.evidence(replace(cohort, waveforms=Recordings()), 0, "stemi")
    assert "nobody knows" in plot.get_suptitle()
    marked = pictures.evidence(cohort, int(np.flatnonzero(cohort.manifest.stemi)[0]), "stemi")
    assert any(np.isfinite(ax.lines[1].get_ydata()).any() for ax in axes_of(marked))


@pytest.mark.parametrize("draw", [score_figures.over_fractions, score_figures.optimism, score_figures.forest])
def test_where_nothing_was_run_a_line_stands_instead_of_empty_axes(draw: Callable[..., Plot]) -> None:
    none = scores().iloc[:0]
    figure = draw(none, {"official": "official"})
    assert not figure.axes
    assert not figure.legends
    assert [text.get_text() for text in figure.texts] == [score_figures.NO_SCORES]
