"""What `make test-slow` found is kept as a page of the book."""

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = """
import pytest

@pytest.mark.parametrize("case", range(3))
def test_that_holds(case, record_property):
    record_property("cases", case)

def test_that_does_not():
    assert False
"""


def test_outcomes_seconds_and_figures_stand_in_one_line_a_test(tmp_path: Path) -> None:
    (tmp_path / "test_made_up.py").write_text(TESTS)
    words = ["-m", "pytest", "-q", "-p", "conftest", "--keep-figures=page.md", "test_made_up.py"]
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}"}
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    page = (tmp_path / "page.md").read_text()
    assert re.search(r"\| that holds \| 3 passed \| \d+ \| cases: 0; cases: 1; cases: 2 \|", page)
    assert re.search(r"\| that does not \| 1 failed \| \d+ \|  \|", page)
    assert " cores." in page.splitlines()[2]
