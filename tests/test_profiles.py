"""Profiles: a wrong name or value is refused before anything runs; right ones reach their stage."""

import ast
import functools
import json
import shutil
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
        (
            "05_finetuning.head_outcomes=[hcm,stemmi]",
            "'stemmi': no such outcome in profile quick for 05_finetuning.head_outcomes; did you mean",
        ),
        ("05_finetuning.extra_outcomes=mi_any", "no such outcome in profile quick for 05_finetuning.extra_"),
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


def test_a_profile_without_stemi_keeps_the_default_outcomes_of_the_grid(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("description: mine\noutcomes: [hcm]\n")
    assert load_profile(str(path)).settings(GridSettings).extra_outcomes == ("stemi",)
    with pytest.raises(EcglibError, match="'stemi': no such outcome in profile mine"):
        load_profile(str(path), ["05_finetuning.extra_outcomes=[stemi]"])


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


def page_keys(profile: profiles.Profile) -> dict[str, str]:
    return {name: page_key(profile, name, None, "data") for name in NOTEBOOKS}


def stale(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in NOTEBOOKS if before[name] != after[name]}


# --- the tables of the book ---

TABLES = {
    "claims.CLAIMS_FILE": "claims.csv",
    "audit.FACTS_FILE": "audit_facts.csv",
    "audit_study.LARGER_MODELS_FILE": "larger_models.csv",
}
MODULES = {path.stem: ast.parse(path.read_text()) for path in (ROOT / "ecglib").glob("*.py")}


def imported(tree: ast.Module) -> dict[str, str]:
    """What names imported from the package stand for: `module` or `module.name`."""
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}".removeprefix("ecglib.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ecglib"
        for alias in node.names
    }


def used(code: ast.AST, meaning: dict[str, str]) -> set[str]:
    """Functions, classes and constants of the package that some code names, as `module.name`."""
    names = {node.id for node in ast.walk(code) if isinstance(node, ast.Name)}
    of_modules = {
        f"{meaning.get(node.value.id)}.{node.attr}"
        for node in ast.walk(code)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    return {meaning[name] for name in names & meaning.keys()} | of_modules


@functools.cache
def package() -> dict[str, set[str]]:
    """Every function, class and constant of the package, and those that its code names."""
    found: dict[str, set[str]] = {}
    for module, tree in MODULES.items():
        own: dict[str, ast.AST] = {}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                names = [name for name in ast.walk(node) if isinstance(name, ast.Name)]
                own |= {name.id: node for name in names if isinstance(name.ctx, ast.Store)}
        meaning = imported(tree) | {name: f"{module}.{name}" for name in own}
        found |= {f"{module}.{name}": used(node, meaning) for name, node in own.items()}
    return found


def tables_read(notebook: str) -> set[str]:
    """The book's tables to which the calls of a notebook lead, by the package's code."""
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text())["cells"]
    code = ast.parse("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))
    reached: set[str] = set()
    to_follow = used(code, imported(code))
    while to_follow:
        reached |= to_follow
        follow = to_follow - TABLES.keys()  # a table's path may be made of another's
        to_follow = set().union(*(package().get(name, set()) for name in follow)) - reached
    return {TABLES[name] for name in reached & TABLES.keys()}


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS))
def test_a_notebook_names_the_tables_of_the_book_that_its_code_reads(notebook: str) -> None:
    assert set(NOTEBOOKS[notebook].tables) == tables_read(notebook)


def test_every_table_of_the_book_is_named_by_a_notebook() -> None:
    named = {name for entry in NOTEBOOKS.values() for name in entry.tables}
    assert named == {path.name for path in profiles.BOOK.glob("*.csv")} == set(TABLES.values())


@pytest.mark.parametrize("table", TABLES.values())
def test_the_pages_that_read_a_table_of_the_book_are_stale_once_it_has_changed(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in profiles.BOOK.glob("*.csv"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(profiles, "BOOK", tmp_path)
    profile = load_profile("smoke")
    before = page_keys(profile)
    with open(tmp_path / table, "a") as stream:
        stream.write("one line more\n")
    assert stale(before, page_keys(profile)) == {n for n, entry in NOTEBOOKS.items() if table in entry.tables}


def test_pages_are_stale_once_weights_on_which_they_depend_were_replaced_under_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "WEIGHTS", tmp_path)
    profile = load_profile("quick", ["03_tokens.weights=mine", "13_weights.shown=shown"])
    found = {}
    for name in ("mine", "shown", "others"):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "encoder.safetensors"
        file.write_text("first")
        before = page_keys(profile)
        file.write_text("second")
        found[name] = stale(before, page_keys(profile))
    assert found["mine"] == {name for name in NOTEBOOKS if "03_tokens" in ancestors(name)}
    assert found["shown"] == {"11_audit", "13_weights"}, "the audit lists all published weights"
    assert found["others"] == {"11_audit"}
