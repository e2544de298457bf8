"""What `ecglib run` says on the terminal."""

import pytest

from ecglib.run import say


def test_a_line_that_stays_is_said_whole_and_one_that_passes_is_kept_short(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pages = ", ".join(f"{number:02d}_page" for number in range(20))
    say(f"pages unchanged: {pages}")
    assert capsys.readouterr().err == f"pages unchanged: {pages}\n"
    say(pages, passing=True)
    assert capsys.readouterr().err == pages[:110]
