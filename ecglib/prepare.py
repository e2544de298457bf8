"""`ecglib prepare`: the first steps of a profile alone, on the terminal, where files may be named."""

from collections.abc import Sequence

from ecglib.datasets import DataPaths
from ecglib.errors import EcglibError
from ecglib.hospital import MuseFolder
from ecglib.opening import runs_folder
from ecglib.profiles import load_profile
from ecglib.run import alone, say
from ecglib.study import Study

PROFILES = {"muse": "muse", "ptbxl": "ptbxl-tiny", "embedded": "quick"}  # by source, where none is named


def prepare_images(source: str, profile: str | None, data: DataPaths, overrides: Sequence[str]) -> None:
    """Open the cohort, say what is not in it, and draw its images where `ecglib run` finds them.

    Raises EcglibError for what the cohort refuses, naming it in one line.
    """
    if source not in PROFILES:
        raise EcglibError(f"source {source!r}: must be one of {', '.join(PROFILES)}")
    loaded = load_profile(profile or PROFILES[source], [f"01_cohorts.source={source}", *overrides])
    with alone(runs_folder(loaded)):
        study = Study(loaded, "02_preprocessing", data=data)
        for note in study.cohort.notes:
            say(note)
        if isinstance(study.cohort.waveforms, MuseFolder):
            for line in study.cohort.waveforms.complaints():
                say(line)
        images = study.images
    say(f"images: {len(images):,}, content hash {images.data_hash}, in {images.directory}")
    say(f"next:   ecglib run {loaded.reference}, with the same data, table, key and settings")
