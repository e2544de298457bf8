"""Profiles: a wrong name or value is refused before anything runs; right ones reach their stage."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecglib import profiles
from ecglib.errors import EcglibError
from ecglib.finetune import FinetuneSettings
from ecglib.grid import GridSettings
from ecglib.profiles import (
    NOTEBOOKS,
    PROFILES,
    ROOT,
    ancestors,
    format_overrides,
    load_profile,
    meanings,
    page_key,
    parse_overrides,
)
from ecglib.quality import QualitySettings

SHIPPED = sorted(path.stem for path in PROFILES.glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profiles_hold_valid_settings(name: str) -> None:
    profile = load_profile(name)
    assert profile.outcomes
    assert profile.all_settings(NOTEBOOKS).keys() == NOTEBOOKS.keys()


def test_override_reaches_the_settings_of_its_stage() -> None:
    changed = load_profile("quick", ["05_finetuning.steps=7", "05_finetuning.fractions=[0.5,1]"])
    assert changed.settings(FinetuneSettings).steps == 7
    assert changed.settings(GridSettings).fractions == (0.5, 1.0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("05_finetuning.stepz=1", "no such setting of 05_finetuning; did you mean 'steps'"),
        ("05_finetunig.steps=1", "no such notebook; did you mean '05_finetuning'"),
        ("05_finetuning.steps=1.5", "the setting is int"),
        ("05_finetuning.steps=true", "the setting is int"),
        ("05_finetuning.fractions=[0.5,x]", "the setting is float"),
        ("05_finetuning.fractions=[1.5]", "fractions=1.5"),
        ("05_finetuning.models=resnet", "models=resnet"),
        ("steps=1", "NOTEBOOK.NAME=VALUE"),
        ("04_pretraining.steps=20", "nothing is pretrained where 03_tokens.weights=heartbeit_nano"),
    ],
)
def test_wrong_override_is_refused_in_one_line(override: str, message: str) -> None:
    with pytest.raises(EcglibError) as caught:
        load_profile("quick", [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("outcomes: [stemi]\n", "description"),
        ("a: [b\n", "not a YAML file"),
        ("description: d\noutcomes: [stemi]\n05_finetuning:\n  stepz: 3\n", "'stepz'"),
        ("description: d\noutcomes: stemi\n", "outcomes: stemi must be a list of names"),
        ("description: d\noutcomes: [stemi]\nshows: ptbxl-tiny\n", "shows: ptbxl-tiny must be a list"),
        (
            "description: d\noutcomes: [stemi]\n05_finetuning: 3\n",
            "05_finetuning: 3 must be lines of SETTING",
        ),
    ],
)
def test_wrong_profile_file_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(EcglibError) as caught:
        load_profile(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_own_profile_file_is_read_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("description: mine\noutcomes: [stemi]\n05_finetuning:\n  max_learning_rate: 1e-4\n")
    profile = load_profile(str(path))
    assert (profile.name, profile.reference) == ("mine", str(path))
    assert profile.settings(FinetuneSettings).max_learning_rate == 1e-4


VALUES = st.integers() | st.booleans() | st.lists(st.integers(), min_size=1) | st.sampled_from(["abc", 0.25])


@given(
    st.dictionaries(
        st.sampled_from(sorted(NOTEBOOKS)), st.dictionaries(st.sampled_from("abc"), VALUES, min_size=1)
    )
)
def test_overrides_survive_being_written_and_read(overrides: dict) -> None:
    assert parse_overrides(format_overrides(overrides)) == overrides


def test_an_override_matters_to_its_own_notebook_and_those_that_read_it() -> None:
    profile = load_profile("smoke", ["04_pretraining.steps=50"])
    told = {notebook for notebook in NOTEBOOKS if profile.overrides_for(notebook)}
    readers = {"06_results", "08_saliency", "10_reliability", "11_audit", "12_label_lab"}
    assert told == {"04_pretraining", "05_finetuning", *readers}
    assert ancestors("07_domain_shift") == {"01_cohorts", "02_preprocessing", "07_domain_shift"}
    # Page 01 counts the faults that are found while the images of page 02 are drawn.
    assert ancestors("01_cohorts") == {"01_cohorts", "02_preprocessing"}
    strict = load_profile("quick", ["01_cohorts.amplitude_mv=8"])
    assert strict.settings(QualitySettings).amplitude_mv == 8


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS))
def test_every_setting_says_what_it_means(notebook: str) -> None:
    assert meanings(notebook).keys() == NOTEBOOKS[notebook].fields().keys()
    assert (ROOT / "notebooks" / f"{notebook}.ipynb").exists()


def test_what_notebooks_show_is_kept() -> None:
    shown = [profiles.KEPT / name for entry in NOTEBOOKS.values() for name in entry.kept]
    assert len(shown) >= 4
    assert all(path.exists() for path in shown)


def test_a_page_is_stale_once_a_kept_result_that_it_shows_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "KEPT", tmp_path)
    (tmp_path / "speed").mkdir()
    profile = load_profile("smoke")

    def keys() -> list[str]:
        return [page_key(profile, name, None, "data") for name in ("14_cost", "01_cohorts")]

    before = keys()
    (tmp_path / "speed" / "mine.json").write_text("1")
    added = keys()
    (tmp_path / "speed" / "mine.json").write_text("2")
    changed = keys()
    assert len({before[0], added[0], changed[0]}) == 3
    assert before[1] == added[1] == changed[1]
