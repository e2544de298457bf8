"""What a profile works on: its cohort, kept results that fit it, the weights that it names."""

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ecglib.classifiers import require_hub
from ecglib.cohort import Cohort
from ecglib.datasets import CohortSettings, DataPaths, open_cohort
from ecglib.domain_shift import ShiftSettings
from ecglib.errors import EcglibError
from ecglib.filtering import FilterSettings
from ecglib.finetune import FinetuneSettings
from ecglib.grid import GridSettings
from ecglib.image import ImageSettings
from ecglib.probe import ProbeSettings
from ecglib.profiles import ROOT, Profile
from ecglib.published import WeightsSettings, find, published, weights_key
from ecglib.quality import QualitySettings
from ecglib.results import KeptResults, require_equal


def runs_folder(profile: Profile, data: DataPaths | None = None) -> Path:
    """Where a profile's results lie; pages made of kept predictions lie apart."""
    name = f"{profile.name}-from-predictions" if data and data.results else profile.name
    return Path(os.environ.get("ECGLIB_RUNS", ROOT / "runs")).resolve() / name


def open_data(profile: Profile, data: DataPaths, kept: KeptResults | None = None) -> tuple[Profile, Cohort]:
    """Open a profile's cohort; the profile comes back with the outcomes that exist there.

    kept: the results that `data` names, where they are open already.
    A hospital's table may have fewer outcomes than the profile names. Raises EcglibError where another source
    has, and where kept predictions are of other data or were changed.
    """
    settings = profile.settings(CohortSettings)
    if data.results:
        cohort = (kept or open_kept(profile, data.results)).cohort()
    else:
        cohort = open_cohort(
            settings, data.folder, table=data.table, key=data.key, cache=runs_folder(profile)
        )
    known = ", ".join(cohort.outcomes)
    missing = sorted(set(profile.outcomes) - set(cohort.outcomes))
    if len(missing) == len(profile.outcomes) or (missing and settings.source != "muse"):
        raise EcglibError(f"outcome {missing[0]!r}: {cohort.name} has {known}; mend the profile")
    return replace(profile, outcomes=tuple(o for o in profile.outcomes if o in cohort.outcomes)), cohort


def open_kept(profile: Profile, folder: Path) -> KeptResults:
    """Kept results of a profile. EcglibError where they are damaged, or of other settings or weights."""
    kept = KeptResults.open(folder)
    require_made_for(kept, profile)
    require_made_with(kept, profile)
    return kept


def require_made_for(kept: KeptResults, profile: Profile) -> None:
    """Raise EcglibError where kept results are of other data, images or training than a profile's."""
    for name, value in drawn_by(profile).items():
        require_equal(kept.folder, kept.head["settings"][name], value)
    kept.require_settings("finetuned", profile.settings(FinetuneSettings))
    kept.require_settings("head", profile.settings(ProbeSettings))


def require_made_with(kept: KeptResults, profile: Profile) -> None:
    """Raise EcglibError where kept results of HeartBEiT are of other published weights than a profile's.

    Weights that are not at hand tell nothing: the predictions do without them.
    """
    name = profile.settings(WeightsSettings).weights
    if not name or name not in published():
        return
    ours = {weights_key(find(name))}
    theirs = {made["model"] for cell, made in kept.cells.items() if cell.model == "heartbeit"}
    if theirs - ours:
        raise EcglibError(
            f"{kept.folder} keeps results of other weights: {min(theirs - ours)} there, {min(ours)} here; "
            "make them again with `ecglib grid --export`"
        )


def drawn_by(profile: Profile) -> dict[str, dict[str, Any]]:
    """The settings that decide what an ECG, its label and its image are."""
    kinds = (CohortSettings, FilterSettings, ImageSettings, QualitySettings, ShiftSettings)
    return {kind.__name__: asdict(profile.settings(kind)) for kind in kinds}


def require_weights(profile: Profile) -> None:
    """Raise EcglibError, before any work, where published weights or a hub's that a profile names lack."""
    if name := profile.settings(WeightsSettings).weights:
        find(name)
    for cell in profile.settings(GridSettings).all_cells(profile.outcomes):
        require_hub(cell.model)
