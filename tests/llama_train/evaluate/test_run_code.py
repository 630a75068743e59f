"""Programs that pass, fail, hang, eat memory and leave children behind."""

import time
from pathlib import Path

import pytest

from llama_train.evaluate import run_code
from llama_train.evaluate.run_code import passes


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("assert 1 + 1 == 2", True),
        ("assert 1 + 1 == 3", False),
        ("def f(:", False),
        ("import sys; sys.exit(0)", False),  # it did not get to its test
        ("from typing import List\nprint('x' * 10**6)", True),
        ("assert not input()", False),  # there is no input
        (
            "import os; assert os.listdir() == []; open('a', 'w').write('b'); assert 'HOME' not in os.environ",
            True,
        ),
    ],
)
def test_a_program_passes_if_it_comes_to_its_end(program: str, expected: bool) -> None:
    assert passes(program) is expected


def test_a_program_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    program = f"""
import os, time
child = os.fork()
if child:
    with open({str(tmp_path / "pid")!r}, "w") as file:
        file.write(str(child))
time.sleep(600)
"""
    began = time.monotonic()
    assert not passes(program, seconds=2)
    assert time.monotonic() - began < 20
    child = int((tmp_path / "pid").read_text())
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split(") ")[1][0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"{child} still runs")


def test_memory_and_files_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_code, "MEMORY_BYTES", 2**28)
    assert passes("x = bytearray(2**20)")
    assert not passes("x = bytearray(2**29)")
    assert passes("open('a', 'wb').write(bytes(2**20))")
    assert not passes("open('a', 'wb').write(bytes(2**25))")
