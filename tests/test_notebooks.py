"""The notebooks stay thin, documented and clean; their execution is tested end to end elsewhere."""

import ast
import re

import nbformat
import pytest
from nbformat import NotebookNode
from papermill.inspection import inspect_notebook

from ecglib.profiles import NOTEBOOKS, ROOT

FOLDER = ROOT / "notebooks"
SHARED_PARAMETERS = {"profile", "overrides"}
TYPES = {"str", "int", "float"}


@pytest.fixture(params=sorted(NOTEBOOKS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def notebook(name: str) -> NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook: NotebookNode, with_parameters: bool = False) -> list[NotebookNode]:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [c for c in cells if with_parameters or "parameters" not in c.metadata.get("tags", [])]


def test_every_notebook_of_the_study_is_a_file_and_no_other() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NOTEBOOKS)


def test_notebook_is_valid_and_its_cells_have_stable_ids(notebook: NotebookNode) -> None:
    nbformat.validate(notebook)
    # As nbstripout numbers them, so that a run leaves no other ids behind.
    assert [cell.id for cell in notebook.cells] == [str(place) for place in range(len(notebook.cells))]
    assert notebook.metadata.kernelspec.name == "python3"


def test_no_output_and_no_execution_count_is_kept(notebook: NotebookNode) -> None:
    for cell in code_cells(notebook, with_parameters=True):
        assert not cell.outputs
        assert cell.execution_count is None


def test_it_opens_with_a_title_that_is_a_question(notebook: NotebookNode) -> None:
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    title = first.source.splitlines()[0]
    assert title.startswith("# ")
    assert title.endswith("?")
    assert len(first.source.splitlines()) > 2, "one or two sentences on what the paper did"


def test_parameters_are_documented_for_papermill(name: str, notebook: NotebookNode) -> None:
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert notebook.cells[1] is tagged[0], "right under the title"
    found = inspect_notebook(str(FOLDER / f"{name}.ipynb"))
    assigned = [node for node in ast.walk(ast.parse(tagged[0].source)) if isinstance(node, ast.AnnAssign)]
    assert len(found) == len(assigned) == len(ast.parse(tagged[0].source).body)
    for parameter in found.values():
        assert parameter["help"].strip(), parameter["name"]
        assert parameter["inferred_type_name"] in TYPES, parameter["name"]


def test_each_own_parameter_is_a_setting_of_that_notebook(name: str, notebook: NotebookNode) -> None:
    found = inspect_notebook(str(FOLDER / f"{name}.ipynb"))
    own = {key for key, parameter in found.items() if parameter["default"] == "None"}
    shared = SHARED_PARAMETERS | ({"outcome"} if NOTEBOOKS[name].per_outcome else set())
    assert set(found) == own | shared
    assert own <= NOTEBOOKS[name].fields().keys()
    handed_on = {
        keyword.arg
        for call in _calls(notebook, "open")
        for keyword in call.keywords
        if isinstance(keyword.value, ast.Name) and keyword.value.id == keyword.arg
    }
    assert handed_on == set(found) - {"profile"}, "every parameter must reach Study.open under its own name"


def _calls(notebook: NotebookNode, method: str) -> list[ast.Call]:
    nodes = [n for cell in code_cells(notebook) for n in ast.walk(ast.parse(cell.source))]
    calls = [n for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    return [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == method]


def test_the_study_is_opened_under_the_notebooks_own_name(name: str, notebook: NotebookNode) -> None:
    (call,) = _calls(notebook, "open")
    assert [ast.unparse(argument) for argument in call.args] == ["profile", repr(name)]


def test_cells_are_thin_and_hold_no_logic(notebook: NotebookNode) -> None:
    forbidden = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While, ast.If, ast.Try, ast.With)
    for cell in code_cells(notebook):
        tree = ast.parse(cell.source)
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert len(imports) in (0, len(tree.body)), f"{cell.id}: imports stand in a cell of their own"
        assert imports or len(cell.source.splitlines()) <= 6, f"{cell.id}: more than six lines"
        found = [type(n).__name__ for n in ast.walk(tree) if isinstance(n, forbidden)]
        assert not found, f"{cell.id}: {found} belongs into ecglib"


def test_every_result_is_explained_in_words(notebook: NotebookNode) -> None:
    """Each run of code cells that shows something is followed by Markdown before the next section."""
    shows = [cell for cell in notebook.cells if cell.cell_type == "code"]
    texts = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    assert len(texts) >= len(shows) / 2
    for cell in shows:
        if cell.metadata.get("mystnb"):
            assert len(cell.metadata["mystnb"]["image"]["alt"]) > 20, f"{cell.id}: alt text"


def test_figures_have_alternative_text(notebook: NotebookNode) -> None:
    for cell in code_cells(notebook):
        last = ast.parse(cell.source).body[-1]
        draws = isinstance(last, ast.Expr) and re.match(
            r"(\w*figures|pictures)\.|explanations\.panel", ast.unparse(last)
        )
        assert bool(draws) == ("mystnb" in cell.metadata), f"{cell.id}: figures, and only they, have alt text"


def test_it_ends_with_the_record_of_what_made_it(notebook: NotebookNode) -> None:
    assert notebook.cells[-1].source == "show_record(study)"
    assert "from ecglib.pages import show_record" in "\n".join(c.source for c in code_cells(notebook))
