"""Files whole or not at all; JSON faults named with their place (RELIABILITY rows 1-3, 6; 74)."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from scantling.data.io import (
    atomic_write,
    describe_content,
    hint_for_missing,
    parse_json,
    read_json,
    replacing,
    sha256_of,
    write_json,
)
from scantling.errors import DataError, UsageError


def finding_of(error: pytest.ExceptionInfo[DataError]):
    (finding,) = error.value.findings
    return finding


# ---------------------------------------------------------------- writing


def test_what_is_no_ordinary_file_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for target in (pipe, tmp_path):
        with pytest.raises(UsageError, match="no ordinary file"):
            atomic_write(target, "x")
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_atomic_write_makes_the_folder_and_replaces_the_old_file(tmp_path):
    path = tmp_path / "new" / "results.json"
    atomic_write(path, "één\r\n")
    assert path.read_bytes() == "één\r\n".encode()
    atomic_write(path, b"\0\1")
    assert path.read_bytes() == b"\0\1"
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]


def test_a_failure_keeps_the_old_file_and_leaves_no_debris(tmp_path):
    path = tmp_path / "last.bin"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text(f"new, but {1 / 0}")
    with pytest.raises(FileNotFoundError), replacing(path) as temporary:
        pass  # nothing was written at all
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.bin"]


@pytest.mark.parametrize("place", ["write", "fsync"])
def test_row_74_a_full_disk_is_told_and_leaves_the_old_file(tmp_path, monkeypatch, place):
    path = tmp_path / "last.bin"
    path.write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*{"write": (Path, "write_bytes"), "fsync": (os, "fsync")}[place], full)
    with pytest.raises(UsageError, match=r"last\.bin: no space left"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.bin"]


def test_a_target_that_cannot_be_written_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        atomic_write(tmp_path / "file" / "inside.json", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        atomic_write(tmp_path / "folder", "x")


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.bin"
    path.write_text("old")
    script = (
        "import os, sys; from scantling.data.io import replacing\n"
        "with replacing(sys.argv[1]) as t: t.write_text('new'); os.kill(os.getpid(), 9)"
    )
    source = Path(__file__).parents[2] / "src"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], env={"PYTHONPATH": str(source)}, check=False
    )
    assert done.returncode == -9
    assert path.read_text() == "old"


def test_written_json_is_strict_and_keeps_other_scripts(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"name": "Ölfleck", "ids": [1, 90]})
    assert path.read_text(encoding="utf-8") == '{"name":"Ölfleck","ids":[1,90]}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, [float("nan")])
    assert read_json(path) == {"name": "Ölfleck", "ids": [1, 90]}


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


# ---------------------------------------------------------------- reading


def test_row_1_missing_folder_or_empty(tmp_path):
    (tmp_path / "Train.json").write_text("{}")
    (tmp_path / "empty.json").write_bytes(b"")
    for name, code in (("train.json", "file-missing"), ("empty.json", "file-empty"), (".", "file-is-folder")):
        with pytest.raises(DataError) as error:
            read_json(tmp_path / name)
        assert finding_of(error).code == code
        assert finding_of(error).file == str(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    with pytest.raises(DataError, match=r"Did you mean 'Train\.json'\?"):
        read_json(tmp_path / "train.json")


def test_row_1_the_part_of_the_path_that_exists_is_named(tmp_path):
    hint = hint_for_missing(tmp_path / "no" / "such" / "train.json")
    assert hint == f"The folder {tmp_path} exists, what follows does not."


@pytest.mark.parametrize(
    ("data", "code", "place", "words"),
    [
        (b'{"a": [1,\n 2,,]}', "json-syntax", "line 2 column 4", "not valid JSON"),
        (b'{"a": [1, 2', "json-syntax", "line 1 column 12", "ends too early"),
        (b'{"a": "unclosed', "json-syntax", "line 1 column 7", "Unterminated"),
        ('{"a": 1}'.encode("utf-16"), "json-encoding", None, "UTF-16"),
        ('{"a": 1}'.encode("utf-16-le"), "json-encoding", None, "UTF-16"),
        (b'{"a": "\xe9"}', "json-encoding", None, "byte 0xe9 at byte offset 7"),
        (b"\x80\x04\x95\x10", "json-foreign", None, "Python pickle"),
        (b"PK\x03\x04rest", "json-foreign", None, "zip archive"),
        (b"<!DOCTYPE html><html>", "json-foreign", None, "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "json-foreign", None, "git lfs pull"),
        (b'{"a": NaN}', "json-nan", None, "NaN"),
        (b"[-Infinity]", "json-nan", None, "-Infinity"),
    ],
)
def test_row_2_unreadable_content_is_named_with_its_place(data, code, place, words):
    with pytest.raises(DataError) as error:
        parse_json(data, "set.json")
    assert (finding_of(error).code, finding_of(error).path) == (code, place)
    assert words in str(error.value)
    assert "set.json" in str(error.value)


def test_row_3_byte_order_mark_and_other_scripts():
    assert parse_json(b"\xef\xbb\xbf" + '{"名": "Ölfleck"}'.encode(), "f") == {"名": "Ölfleck"}


def test_row_6_repeated_keys_are_all_named():
    text = b'{"images": [], "images": [1], "annotations": [{"id": 1, "id": 2}, {"id": 3, "id": 4}]}'
    with pytest.raises(DataError) as error:
        parse_json(text, "f")
    assert finding_of(error).code == "json-duplicate-key"
    assert "'id' (2 objects), 'images' (1 objects)" in finding_of(error).message


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_row_6_absurd_nesting(opening):
    with pytest.raises(DataError) as error:
        parse_json(opening * 100_000, "f")
    assert finding_of(error).code == "json-too-deep"


def test_row_6_absurd_integer():
    with pytest.raises(DataError) as error:
        parse_json(b"[" + b"9" * 6000 + b"]", "f")
    assert finding_of(error).code == "json-huge-integer"
    assert parse_json(b"[" + b"9" * 400 + b"]", "f") == [int("9" * 400)]


def test_nan_can_be_kept_for_readers_that_name_the_record():
    (value,) = parse_json(b"[NaN]", "f", keep_nan=True)
    assert math.isnan(value)


def test_json_agrees_with_the_standard_parser_on_sound_input():
    value = {"a": [1, 2.5, -3e-7, None, True, {"b": {}}], "é\n": "\u2603", "big": 2**63, "empty": []}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=3)):
        assert parse_json(text.encode(), "f") == value


def test_unknown_content_is_not_described():
    assert describe_content(b"hello") is None
    assert describe_content(b"") is None


def test_trouble_with_another_file_is_not_blamed_on_the_target(tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(IsADirectoryError), replacing(tmp_path / "new" / "a.json"):
        (tmp_path / "other").read_text()
