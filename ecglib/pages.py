"""Pages of the book: the box that says what made them, the checks that refuse bad ones, the build."""

import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ecglib.answer import PROFILE, central_answer
from ecglib.croissant import DESCRIPTION, MANIFEST
from ecglib.errors import EcglibError
from ecglib.profiles import KEPT, NOTEBOOKS, ROOT
from ecglib.provenance import atomic_path, code_hash, digest
from ecglib.results import CELLS, KeptResults
from ecglib.study import Study
from ecglib.style import outcome_name

EXECUTED = Path("book/executed")  # of a book's source
RECORD = "ecglib"  # where a page's record lies in the metadata of its last output
SHOWN = (
    " Its pages on {source} ([results and claims](executed/{profile}/06_results.ipynb)) were made of "
    "predictions that are kept with the book (`book/results/{profile}`): every number and figure on them was "
    "computed anew."
)
FROM_PREDICTIONS = (
    " It was made of predictions that are kept with the book (`book/results/{profile}`), without ECGs and "
    "without training: every number and figure was computed from them anew. Pages that need the ECGs are "
    "left out."
)


def show_record(study: Study) -> None:
    """Display the box of provenance; the last cell of every notebook calls this."""
    from IPython.display import HTML, display

    record = study.record()
    display(HTML(_box(record)), metadata={RECORD: record})


def _box(record: dict[str, Any]) -> str:
    machine = record["machine"]
    made = [entry for entry in record["made"] if not entry["reused"]]
    facts = {
        "Data": f"{record['source']}, content hash {record['data_hash']}",
        "Profile": record["profile"] + (f", outcome {record['outcome']}" if record["outcome"] else ""),
        "Commit": record["commit"],
        "Wall time": f"{record['wall_seconds']:.0f} s: {len(made)} results computed, "
        f"{len(record['made']) - len(made)} reused",
        "Machine": ", ".join(
            [
                machine["processor"],
                f"{machine['cores']} cores",
                machine["device"],
                f"torch {machine['torch']}",
            ]
        ),
    }
    if record["predictions"]:
        facts["Predictions"] = record["predictions"]
    rows = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in facts.items())
    return (
        f'<details class="provenance"><summary>How this page was made, on {_text(record["source"])}</summary>'
        f"<table>{rows}</table>{_parameter_table(record['parameters'])}"
        f"<p>To make it again:</p><pre>{_text(record['command'])}</pre></details>"
    )


def _parameter_table(parameters: Iterable[dict[str, Any]]) -> str:
    rows = "".join(
        f'<tr class="{p["set_by"]}"><td><code>{_text(p["name"])}</code></td><td>{_text(p["value"])}</td>'
        f"<td>{_text(p['set_by'])}</td><td>{_text(p['meaning'])}</td></tr>"
        for p in parameters
    )
    head = "<tr><th>Parameter</th><th>Value</th><th>Set by</th><th>Meaning</th></tr>"
    return f"<table>{head}{rows}</table>" if rows else ""


def _text(value: object) -> str:
    return html.escape(str(value))


def check_executed(path: Path, key: str | None = None) -> dict[str, Any]:
    """Refuse an executed notebook that failed, is unfinished, stale or unknown in its parameters.

    Args: `key` is the page key that a fresh page would have, None where that is not known.
    Returns its record. Raises EcglibError, one line.
    """
    if not path.exists():
        raise EcglibError(f"{path.name}: this page's notebook was not executed; run `ecglib run` again")
    content = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    for cell in code:
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                why = " ".join(f"{output['ename']}: {output['evalue']}".split())
                raise EcglibError(f"{path.name}: its notebook failed: {why}")
    if any(cell["execution_count"] is None and "".join(cell["source"]).strip() for cell in code):
        raise EcglibError(f"{path.name}: a cell was not executed; run `ecglib run` again")
    record = _find_record(code)
    if record is None:
        raise EcglibError(
            f"{path.name}: no record of what made it; its last cell must call show_record(study)"
        )
    given = set(content["metadata"].get("papermill", {}).get("parameters", {}))
    if unknown := given - _declared_parameters(code):
        raise EcglibError(f"{path.name}: unknown parameter {min(unknown)!r}; see papermill --help-notebook")
    if key is not None and record["key"] != key:
        raise EcglibError(f"{path.name}: stale, settings, data or code have changed; run `ecglib run` again")
    return record


def _find_record(code_cells: list[dict[str, Any]]) -> dict[str, Any] | None:
    found = [
        o["metadata"][RECORD] for c in code_cells for o in c["outputs"] if RECORD in o.get("metadata", {})
    ]
    return found[-1] if found else None


def _declared_parameters(code_cells: list[dict[str, Any]]) -> set[str]:
    cells = [cell for cell in code_cells if "parameters" in cell["metadata"].get("tags", [])]
    lines = [line for cell in cells for line in "".join(cell["source"]).splitlines()]
    return {line.split(":")[0].split("=")[0].strip() for line in lines if "=" in line}


def assemble(plan: dict[str, Any], destination: Path) -> None:
    """Lay out a book's source: prose, configuration and the executed notebooks, each checked."""
    shutil.rmtree(destination, ignore_errors=True)
    left_out = shutil.ignore_patterns("executed", "results", "__pycache__")
    shutil.copytree(ROOT / "book", destination / "book", ignore=left_out)
    shutil.copytree(ROOT / "docs", destination / "docs")
    for prose in destination.glob("*/*.md"):
        prose.write_text(_fit_links(prose.read_text(encoding="utf-8"), plan["pages"]), encoding="utf-8")
    shutil.copy(ROOT / "_config.yml", destination)
    executed = destination / EXECUTED
    executed.mkdir()
    records = {}
    for page, entry in plan["pages"].items():
        records[page] = check_executed(Path(entry["executed"]), entry["key"])
        (executed / page).parent.mkdir(exist_ok=True)
        _lay_out(Path(entry["executed"]), executed / f"{page}.ipynb", records[page], page, plan["pages"])
    keys = {page: entry["key"] for page, entry in plan["pages"].items()}
    (executed / "keys.json").write_text(json.dumps(keys), encoding="utf-8")
    (destination / "book" / "answer.md").write_text(_answer(destination.parent), encoding="utf-8")
    (destination / "book" / "this_run.md").write_text(_this_run(plan, records), encoding="utf-8")
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    (destination / "_toc.yml").write_text(yaml.safe_dump(fit_toc(toc, plan["pages"]), sort_keys=False))


def _answer(cache: Path) -> str:
    """What the kept results say of the central claim: bootstrapped once for each state of them."""
    folder = KEPT / PROFILE
    if not (folder / CELLS).exists():
        return central_answer(folder)
    key = digest([KeptResults.open(folder).fingerprint, code_hash("ecglib.answer")])
    path = cache / "answers" / f"{key}.md"
    if not path.exists():
        with atomic_path(path) as partial:
            partial.write_text(central_answer(folder), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _fit_links(text: str, pages: Iterable[str], above: Iterable[str] = ()) -> str:
    """Text without links to the notebooks that this book leaves out: their names stay as words.

    A link to one of `above` leads a folder up.
    """
    links = re.compile(
        r"\[([^\]]+)\]\((?:(?:\.\./book/)?executed/)?([\w/-]+)\.ipynb\)"  # of Markdown
        r'|<a href="(\w+)\.html(?:#[^"]*)?">(.*?)</a>'  # of a table
    )

    def fit(link: re.Match[str]) -> str:
        name = link[2] or link[3]
        if name in pages:
            return link[0]
        if name in above:
            return re.sub(rf'(\(|href=")(?={name}\.)', r"\1../", link[0])
        return link[1] or link[4]

    return links.sub(fit, text)


def _lay_out(source: Path, target: Path, record: dict[str, Any], page: str, pages: Iterable[str]) -> None:
    """Copy an executed notebook: what it is of in its title, its box of provenance right under, no stderr.

    pages: those of the book; it may link to those in its own folder, and to what is shown whatever the data.
    """
    content = json.loads(source.read_text(encoding="utf-8"))
    cells = content["cells"]
    box = next(
        c for c in reversed(cells) if any(RECORD in o.get("metadata", {}) for o in c.get("outputs", []))
    )
    cells.remove(box)
    cells.insert(1, box)
    cells[0]["source"] = "".join(cells[0]["source"]).replace("# ", f"# {_what_of(record, page)}", 1)
    box["metadata"]["tags"] = ["remove-input"]  # the call says nothing to a reader
    beside = {other.rpartition("/")[2] for other in pages if _folder(other) == _folder(page)}
    of_any_data = {other for other in pages if other in NOTEBOOKS and NOTEBOOKS[other].kept}
    for cell in cells:
        if cell["cell_type"] == "markdown":
            cell["source"] = _fit_links("".join(cell["source"]), beside, of_any_data)
        if "outputs" in cell:  # libraries' warnings hold paths of this machine
            cell["outputs"] = [o for o in cell["outputs"] if o.get("name") != "stderr"]
        for data in (output["data"] for output in cell.get("outputs", []) if "data" in output):
            if "text/html" in data:
                data["text/html"] = _fit_links("".join(data["text/html"]), beside, of_any_data)
    content["metadata"].pop("papermill", None)  # it holds paths of this machine
    target.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _folder(page: str) -> str:
    """Under which name a page lies; empty for one of the book's own profile."""
    return page.rpartition("/")[0]


def _what_of(record: dict[str, Any], page: str) -> str:
    """Begin a title where one notebook makes several pages: by the source of a shown one, and the outcome."""
    source = [record["source"].partition(" (")[0]] if _folder(page) else []
    outcome = [outcome_name(record["outcome"])] if record["outcome"] else []
    return f"{', '.join(source + outcome)}: " if source or outcome else ""


def _this_run(plan: dict[str, Any], records: dict[str, dict[str, Any]]) -> str:
    first = next(iter(records.values()))
    seconds = sum(record["wall_seconds"] for record in records.values())
    links = " and ".join(f'<a href="../{name}" download>{name}</a>' for name in _shared(plan))
    kept = FROM_PREDICTIONS.format(**plan) if plan["from_predictions"] else ""
    shown = {(_folder(page), record["source"]) for page, record in records.items() if _folder(page)}
    kept += "".join(SHOWN.format(profile=profile, source=source) for profile, source in sorted(shown))
    consumed = f" What it consumed is described for machines (Croissant): {links}." if links else ""
    return (
        f"**This edition** was made by profile `{plan['profile']}` ({plan['description']}) from: "
        f"**{first['source']}**, at commit `{first['commit']}`, "
        f"on {first['machine']['processor']} with {first['machine']['cores']} cores "
        f"({first['machine']['device']}); its notebooks took {seconds / 60:.1f} minutes.{kept}{consumed}\n"
    )


def _shared(plan: dict[str, Any]) -> tuple[str, ...]:
    """What goes beside the book: the description of the data, unless the patients are a hospital's own."""
    return (DESCRIPTION, MANIFEST) if plan["shares_manifest"] else ()


def fit_toc(toc: Any, pages: Iterable[str]) -> Any:
    """The table of contents with this book's notebooks alone, and the pages of its own outcomes."""
    if isinstance(toc, dict):
        fitted = {name: fit_toc(value, pages) for name, value in toc.items()}
        return {name: value for name, value in fitted.items() if value != []}  # a chapter without sections
    if not isinstance(toc, list):
        return toc
    entries: list[Any] = []
    for entry in toc:
        file = Path(entry.get("file", ""))
        if EXECUTED in file.parents:
            fitting = _fit_page(entry, str(file.relative_to(EXECUTED)), pages)
            entries += [e for e in fitting if e not in entries]
        elif (fitted := fit_toc(entry, pages)).keys() >= entry.keys() - {"sections"}:  # a part has chapters
            entries.append(fitted)
    return entries


def _fit_page(entry: dict[str, Any], page: str, pages: Iterable[str]) -> list[dict[str, Any]]:
    """The entries in the place of one notebook's: none, itself, or one for each outcome of this book."""
    notebook = next(
        (n for n, e in NOTEBOOKS.items() if e.per_outcome and Path(page).name.startswith(n)), None
    )
    if notebook is None:
        return [entry] if page in pages else []
    stem, title = str(Path(page).with_name(f"{notebook}_")), entry["title"].partition(":")[0]
    outcomes = [other.removeprefix(stem) for other in pages if other.startswith(stem)]
    return [{"file": str(EXECUTED / f"{stem}{o}"), "title": f"{title}: {outcome_name(o)}"} for o in outcomes]


def build(plan: dict[str, Any], source: Path, html_folder: Path) -> None:
    """Assemble a book and build it with Jupyter Book; warnings are errors."""
    assemble(plan, source)
    command = [
        Path(sys.executable).with_name("jupyter-book"),
        "build",
        source,
        "-W",
        "-n",
        "--keep-going",
        "--all",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    index = source / "_build" / "html" / "index.html"
    if done.returncode or not index.exists():
        raise EcglibError(f"the book did not build: {first_complaint(done.stdout + done.stderr)}")
    shutil.rmtree(html_folder, ignore_errors=True)
    shutil.copytree(source / "_build" / "html", html_folder)
    for name in _shared(plan):
        shutil.copy(Path(plan["folder"]) / name, html_folder)


def first_complaint(output: str) -> str:
    """The first warning or error in what Jupyter Book printed, without its colours."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    complaint = re.search(r"^.*\b(WARNING|ERROR|CRITICAL|\w+Error): .+$", plain, re.MULTILINE)
    return complaint[0] if complaint else "no page was written; run jupyter-book by hand to see why"


def main(plan_path: Path) -> None:
    """Build the book of a plan; the last rule of the Snakefile calls this."""
    plan = json.loads(plan_path.read_text(encoding="utf-8"))
    build(plan, plan_path.parent / "book", Path(plan["html"]))
    with atomic_path(plan_path.parent / "book_built") as path:
        path.write_text(plan["book_key"], encoding="utf-8")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except EcglibError as error:
        sys.exit(f"error: {error}")
