import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llama_foundation import files
from llama_foundation.files import checksum, publish, publish_directory, publish_json, publish_text


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def half() -> None:
        with publish(path) as file:
            file.write(b"new, but only ha")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    program = (
        "import os, signal, sys; from pathlib import Path; from llama_foundation.files import publish\n"
        "with publish(Path(sys.argv[1])) as file:\n"
        "    file.write(b'n' * 100_000); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(path)], timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["file"]


def test_a_new_file_is_not_visible_before_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with publish(path) as file:
        file.write(b"all of it")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"all of it"


def test_data_are_on_disk_before_the_name_changes_and_the_name_after(tmp_path: Path, monkeypatch) -> None:
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: (events.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(files.os, "replace", lambda *names: (events.append("rename"), replace(*names)))
    publish_text(tmp_path / "file", "text")
    assert events == ["fsync", "rename", "fsync"]


def test_text_is_utf8_and_json_keeps_its_letters(tmp_path: Path) -> None:
    publish_text(tmp_path / "text", "größer\n")
    publish_json(tmp_path / "json", {"é": [1, None]})
    assert (tmp_path / "text").read_bytes() == b"gr\xc3\xb6\xc3\x9fer\n"
    assert (tmp_path / "json").read_text(encoding="utf-8") == '{\n  "é": [\n    1,\n    null\n  ]\n}\n'


def test_a_directory_appears_whole_and_never_replaces_another(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    publish_directory(tmp_path / "first", tmp_path / "final")
    with pytest.raises(OSError, match="not empty"):
        publish_directory(tmp_path / "second", tmp_path / "final")
    assert (tmp_path / "final" / "file").read_text() == "first"


def test_checksum_is_xxh3_128() -> None:
    # the published hash of no bytes at all, and one flipped bit
    assert checksum(b"") == "99aa06d3014798d86001c324468d497f"
    assert checksum(b"\x00" * 100) != checksum(b"\x00" * 99 + b"\x01")
