"""Results that several pages need: made once, whoever asks first."""

import threading
from pathlib import Path

import pytest

from ecglib.profiles import load_profile
from ecglib.study import Study


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Study, Study]:
    monkeypatch.setenv("ECGLIB_RUNS", str(tmp_path))
    profile = load_profile("smoke")
    return Study(profile, "05_finetuning", "stemi"), Study(profile, "08_saliency")


def test_a_result_that_another_page_is_making_is_waited_for_and_reused(pages: tuple[Study, Study]) -> None:
    first, second = pages
    at_work, go_on, made = threading.Event(), threading.Event(), []

    def make_slowly(folder: Path) -> None:
        at_work.set()
        assert go_on.wait(10)
        made.append(folder)

    def ask(study: Study) -> Path:
        return study._stage("features", {"model": "random"}, ("ecglib.errors",), make_slowly)

    threads = [threading.Thread(target=ask, args=(study,)) for study in (first, second)]
    threads[0].start()
    assert at_work.wait(10)
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive()
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(made) == 1
    assert [study.made[0]["reused"] for study in (first, second)] == [False, True]


def test_cells_whose_features_another_page_is_making_come_last(
    pages: tuple[Study, Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, other = pages
    asked: list[str] = []
    busy = other._alone(study.folder / "busy")
    busy.__enter__()

    def predict(cell: object) -> None:
        asked.append(str(cell))
        if cell == "heads":
            if asked.count("heads") == 2:
                busy.__exit__(None, None, None)
            with study._alone(study.folder / "busy"):
                pass

    monkeypatch.setattr(study, "grid", lambda outcome: ["heads", "finetuned"])
    monkeypatch.setattr(study, "predictions", predict)
    study._make_cells("stemi")
    assert asked == ["heads", "finetuned", "heads"]
