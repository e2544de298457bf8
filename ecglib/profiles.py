"""Profiles: the settings of every notebook, read from one YAML file and checked before anything runs."""

import difflib
import inspect
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ecglib.classical import TreeSettings
from ecglib.cost import CostSettings
from ecglib.coverage import CoverageSettings
from ecglib.datasets import CohortSettings
from ecglib.domain_shift import ShiftSettings
from ecglib.errors import EcglibError
from ecglib.filtering import FilterSettings
from ecglib.finetune import FinetuneSettings
from ecglib.grid import GridSettings
from ecglib.image import ImageSettings
from ecglib.labels import LabSettings
from ecglib.metrics import ScoreSettings
from ecglib.pretrain import PretrainSettings
from ecglib.probe import ProbeSettings
from ecglib.provenance import code_hash, digest, file_sha256
from ecglib.published import WEIGHTS, ShownWeights, WeightsSettings
from ecglib.quality import QualitySettings
from ecglib.reliability import ReliabilitySettings
from ecglib.saliency import SaliencySettings
from ecglib.tokenizer import TokenizerSettings

ROOT = Path(__file__).resolve().parent.parent
PROFILES = ROOT / "notebooks" / "profiles"
BOOK = ROOT / "book"
KEPT = BOOK / "results"  # predictions that are kept with the book, by profile, and other results
S = TypeVar("S")


@dataclass(frozen=True)
class Notebook:
    """A notebook of the study: the settings that it owns, and the notebooks whose results it reads."""

    settings: tuple[type, ...] = ()
    reads: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()  # notebooks whose settings it depends on, but not their results
    per_outcome: bool = False  # executed once for each outcome
    of_predictions: bool = False  # needs no ECGs: predictions that were kept are enough
    kept: tuple[str, ...] = ()  # files and folders of KEPT that it shows, whatever the profile
    tables: tuple[str, ...] = ()  # tables of BOOK that it quotes: numbers of the paper and of others
    all_weights: bool = False  # tells of all published weights, not of those alone that its settings name
    all_cores: bool = False  # trains one network on all cores; the others leave some to the next page

    def fields(self) -> dict[str, type]:
        """Map each setting's name to the dataclass that holds it."""
        return {field.name: owner for owner in self.settings for field in fields(owner)}


NOTEBOOKS = {
    # Waveforms are judged in the one pass that draws them, so the first page needs the drawing's settings.
    "01_cohorts": Notebook(
        (CohortSettings, QualitySettings), uses=("02_preprocessing",), tables=("claims.csv",)
    ),
    "02_preprocessing": Notebook((FilterSettings, ImageSettings), reads=("01_cohorts",)),
    # Published weights are a tokenizer and an encoder: the first page that takes them names them.
    "03_tokens": Notebook((WeightsSettings, TokenizerSettings), reads=("02_preprocessing",), all_cores=True),
    "04_pretraining": Notebook((PretrainSettings,), reads=("03_tokens",), all_cores=True),
    "13_weights": Notebook((ShownWeights,), uses=("01_cohorts",), of_predictions=True, kept=("trials.json",)),
    "05_finetuning": Notebook(
        (GridSettings, FinetuneSettings, ProbeSettings, ScoreSettings),
        reads=("04_pretraining",),
        per_outcome=True,
        of_predictions=True,
    ),
    # The paper's claims are of distances between images, too.
    "06_results": Notebook(
        reads=("05_finetuning",), uses=("07_domain_shift",), of_predictions=True, tables=("claims.csv",)
    ),
    "10_reliability": Notebook(
        (ReliabilitySettings,), reads=("05_finetuning",), per_outcome=True, of_predictions=True
    ),
    "07_domain_shift": Notebook((ShiftSettings,), reads=("02_preprocessing",), tables=("claims.csv",)),
    "08_saliency": Notebook((SaliencySettings,), reads=("05_finetuning",)),
    "09_statistics": Notebook(
        (CoverageSettings,),
        uses=("01_cohorts",),
        of_predictions=True,
        kept=("ptbxl-tiny", "ptbxl-tiny-elsewhere"),
        tables=("claims.csv",),
    ),
    "11_audit": Notebook(
        (TreeSettings,),
        reads=("05_finetuning",),
        tables=("audit_facts.csv", "claims.csv", "larger_models.csv"),
        all_weights=True,
    ),
    "12_label_lab": Notebook(
        (LabSettings,), reads=("05_finetuning",), uses=("11_audit",), tables=("claims.csv",)
    ),
    "14_cost": Notebook((CostSettings,), uses=("01_cohorts",), of_predictions=True, kept=("speed",)),
}


def ancestors(notebook: str) -> set[str]:
    """All notebooks on whose settings `notebook` depends, itself included."""
    entry = NOTEBOOKS[notebook]
    return {notebook, *entry.uses}.union(*(ancestors(name) for name in entry.reads))


@dataclass(frozen=True)
class Profile:
    """A named set of settings for the whole study; `overrides` are those that differ from the file's."""

    name: str
    reference: str  # what opens it again: its name, or the path of a reader's own file
    description: str
    outcomes: tuple[str, ...]
    values: Mapping[str, Mapping[str, Any]]
    overrides: Mapping[str, Mapping[str, Any]]
    shows: tuple[str, ...] = ()  # profiles whose kept results stand in the same book

    def settings(self, kind: type[S]) -> S:
        """The settings of one stage as its dataclass."""
        notebook = next(name for name, entry in NOTEBOOKS.items() if kind in entry.settings)
        names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
        return kind(**{name: value for name, value in self.values[notebook].items() if name in names})

    def all_settings(self, notebooks: Iterable[str]) -> dict[str, Any]:
        """Every setting of some notebooks, defaults included, as plain values."""
        return {
            name: {owner.__name__: self.settings(owner) for owner in NOTEBOOKS[name].settings}
            for name in sorted(notebooks)
        }

    def overrides_for(self, notebook: str) -> str:
        """The overrides that matter to a notebook, in the words of `--set`."""
        return format_overrides({name: self.overrides.get(name, {}) for name in sorted(ancestors(notebook))})


def load_profile(name: str, overrides: str | Iterable[str] = ()) -> Profile:
    """Read a profile by name (a file in notebooks/profiles) or path, with overrides `notebook.setting=value`.

    Raises EcglibError for an unknown profile, notebook, setting or value.
    """
    own_file = name.endswith((".yaml", ".yml"))
    name = str(Path(name).resolve()) if own_file else name
    path = Path(name) if own_file else PROFILES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        raise EcglibError(
            f"profile {name!r}: no such profile; take one of {known}, or the path of a .yaml file"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise EcglibError(f"{path.name}: not a YAML file ({str(error).splitlines()[0]}); mend it") from error
    if not isinstance(content, dict) or not {"description", "outcomes"} <= content.keys():
        raise EcglibError(f"{path.name}: a profile needs the keys 'description' and 'outcomes'; add them")
    description = str(content.pop("description"))
    outcomes, shows = (_names(path, key, content.pop(key, [])) for key in ("outcomes", "shows"))
    changed = parse_overrides(overrides)
    values: dict[str, dict[str, Any]] = {notebook: {} for notebook in NOTEBOOKS}
    for source in (content, changed):
        for notebook, settings in source.items():
            _require_known(notebook, NOTEBOOKS, "notebook")
            if not isinstance(settings, dict | None):
                raise EcglibError(
                    f"{path.name}: {notebook}: {settings} must be lines of SETTING: VALUE; mend it"
                )
            for setting, value in (settings or {}).items():
                values[notebook][setting] = _cast(notebook, setting, value)
    profile = Profile(path.stem, name, description, outcomes, values, changed, shows)
    profile.all_settings(NOTEBOOKS)  # each dataclass checks its values
    _require_effect(profile)
    _require_outcomes(profile)
    return profile


def _names(path: Path, key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise EcglibError(f"{path.name}: {key}: {value} must be a list of names, such as [stemi]; mend it")
    return tuple(value)


def _require_effect(profile: Profile) -> None:
    """Refuse settings of a pretraining that published weights have behind them."""
    weights = profile.settings(WeightsSettings).weights
    set_here = [
        f"{notebook}.{setting}"
        for notebook in ("03_tokens", "04_pretraining")
        for setting in profile.values[notebook]
        if setting != "weights"
    ]
    if weights and set_here:
        raise EcglibError(
            f"{set_here[0]}: nothing is pretrained where 03_tokens.weights={weights}; leave it out, or "
            "pretrain here with 03_tokens.weights=''"
        )


def _require_outcomes(profile: Profile) -> None:
    """Refuse outcomes of the grid's settings that the profile lacks.

    Only where they are set: the default of extra_outcomes is of no effect in a profile without STEMI.
    """
    for setting in ("extra_outcomes", "head_outcomes"):
        for outcome in profile.values["05_finetuning"].get(setting, ()):
            kind = f"outcome in profile {profile.name} for 05_finetuning.{setting}"
            _require_known(outcome, profile.outcomes, kind)


def parse_overrides(overrides: str | Iterable[str]) -> dict[str, dict[str, Any]]:
    """Read `05_finetuning.steps=20` (several in one string are parted by spaces) into nested settings."""
    changed: dict[str, dict[str, Any]] = {}
    for word in overrides.split() if isinstance(overrides, str) else overrides:
        match = re.fullmatch(r"(\w+)\.(\w+)=(\S+)", word)
        if not match:
            raise EcglibError(
                f"{word!r}: a setting reads NOTEBOOK.NAME=VALUE, such as 05_finetuning.steps=20"
            )
        notebook, setting, value = match.groups()
        _require_known(notebook, NOTEBOOKS, "notebook")
        changed.setdefault(notebook, {})[setting] = yaml.safe_load(value)
    return changed


def format_overrides(overrides: Mapping[str, Mapping[str, Any]]) -> str:
    """Write nested settings as `parse_overrides` reads them."""

    return " ".join(
        f"{notebook}.{setting}={word(value)}"
        for notebook, settings in overrides.items()
        for setting, value in settings.items()
    )


def word(value: Any) -> str:
    """A setting's value as `parse_overrides` reads it, without a space."""
    return f"[{','.join(map(word, value))}]" if isinstance(value, list | tuple) else str(value) or "''"


def meanings(notebook: str) -> dict[str, str]:
    """What each setting of a notebook means: the comment behind its field."""
    return {
        match[1]: match[2]
        for owner in NOTEBOOKS[notebook].settings
        for match in re.finditer(r"^    (\w+): [^#\n]*#\s*(.+)$", inspect.getsource(owner), re.MULTILINE)
    }


def _require_known(name: str, known: Iterable[str], kind: str) -> None:
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"take one of {', '.join(known)}"
        raise EcglibError(f"{name!r}: no such {kind}; {hint}")


def _cast(notebook: str, setting: str, value: Any) -> Any:
    owners = NOTEBOOKS[notebook].fields()
    _require_known(setting, owners, f"setting of {notebook}")
    wanted = typing.get_type_hints(owners[setting])[setting]
    if typing.get_origin(wanted) is tuple:
        element = typing.get_args(wanted)[0]
        return tuple(
            _scalar(notebook, setting, v, element)
            for v in (value if isinstance(value, list | tuple) else [value])
        )
    return _scalar(notebook, setting, value, wanted)


def _scalar(notebook: str, setting: str, value: Any, wanted: Any) -> Any:
    allowed = (
        typing.get_args(wanted) if typing.get_origin(wanted) in (typing.Union, types.UnionType) else (wanted,)
    )
    if typing.get_origin(wanted) is typing.Literal:
        allowed = (str,)
    if float in allowed and isinstance(value, int | str) and not isinstance(value, bool):
        try:  # YAML reads 1e-3 as text
            return float(value)
        except ValueError:
            pass
    if type(value) in allowed:
        return value
    names = " or ".join(kind.__name__ for kind in allowed)
    raise EcglibError(f"{notebook}.{setting}={value}: the setting is {names}; give a value of that kind")


def page_name(notebook: str, outcome: str | None) -> str:
    """Name of an executed notebook: `05_finetuning_stemi`."""
    return f"{notebook}_{outcome}" if outcome else notebook


def pages(profile: Profile, of_predictions: bool = False) -> dict[str, tuple[str, str | None]]:
    """Every page of a profile's book that is a notebook: its name -> (notebook, outcome).

    With `of_predictions`: those that can be made of kept predictions.
    """
    outcomes: dict[str, tuple[str | None, ...]] = {
        notebook: profile.outcomes if entry.per_outcome else (None,)
        for notebook, entry in NOTEBOOKS.items()
        if entry.of_predictions or not of_predictions
    }
    return {page_name(n, outcome): (n, outcome) for n in outcomes for outcome in outcomes[n]}


def result_pages(profile: Profile) -> dict[str, tuple[str, str | None]]:
    """Those pages of kept predictions that tell what the experiment found: name -> (notebook, outcome)."""
    made = pages(profile, of_predictions=True)
    return {page: made[page] for page in made if "05_finetuning" in ancestors(made[page][0])}


def page_key(profile: Profile, notebook: str, outcome: str | None, fingerprint: str) -> str:
    """Hash of all that a page shows.

    That is its settings, data (`fingerprint`), kept results, the book's tables, weights, its text, our code.
    """
    entry = NOTEBOOKS[notebook]
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    modules = sorted(
        path.stem for path in (ROOT / "ecglib").glob("*.py") if path.stem not in ("__init__", "cli", "fetch")
    )
    return digest(
        {
            "settings": profile.all_settings(ancestors(notebook)),
            "outcomes": [outcome] if outcome else profile.outcomes,
            "data": fingerprint,
            "kept": {name: _content(KEPT / name) for name in entry.kept},
            "tables": {name: _content(BOOK / name) for name in entry.tables},
            "weights": {folder.name: _content(folder) for folder in _weights_folders(profile, notebook)},
            "notebook": ["".join(cell["source"]) for cell in cells],
            "code": {name: code_hash(f"ecglib.{name}") for name in modules},
        }
    )


def _weights_folders(profile: Profile, notebook: str) -> list[Path]:
    """Where the published weights lie of which a page tells: the settings hold no more than their names."""
    if NOTEBOOKS[notebook].all_weights:
        return [WEIGHTS]
    owners = {owner for name in ancestors(notebook) for owner in NOTEBOOKS[name].settings}
    weights, shown = profile.settings(WeightsSettings).weights, profile.settings(ShownWeights).shown
    named = {WeightsSettings: weights, ShownWeights: shown}
    return [WEIGHTS / name for owner, name in named.items() if owner in owners and name]


def _content(path: Path) -> dict[str, str]:
    """The hash of a file, or of each in a folder; nothing of what is not there."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {str(file.relative_to(path)): file_sha256(file) for file in files if file.is_file()}
