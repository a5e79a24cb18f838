"""What a newcomer does wrong, through the command line: one screen that says what to do, or it just works."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image
from typer.testing import CliRunner

from scantling.cli.app import app


def check(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="scantling")
    assert "Traceback" not in done.output
    assert len(done.stderr.splitlines()) < 25
    return done


@pytest.fixture
def parts(tmp_path):
    """A COCO set with category id 0 and names with spaces and non-ASCII letters."""
    root = tmp_path / "my parts ü"
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    content = {
        "images": [{"id": 1, "file_name": "ö 1.png", "width": 60, "height": 40}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 0, "bbox": [5, 5, 20, 20]}],
        "categories": [{"id": 0, "name": "große Schraube 螺丝"}],
    }
    Image.effect_noise((60, 40), 80).convert("RGB").save(root / "images" / "ö 1.png")
    (root / "annotations" / "all.json").write_text(json.dumps(content))
    return root


def test_category_zero_and_odd_names_just_work(parts, tmp_path):
    done = check("check", parts, "--html", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    assert "große Schraube 螺丝" in done.stdout
    assert "große Schraube 螺丝" in (tmp_path / "page.html").read_text()
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{"image_id": 1, "category_id": 0, "bbox": [5, 5, 20, 20], "score": 0.9}]))
    for target in ("yolo", "voc"):
        assert check("convert", parts, "--to", target, "--out", tmp_path / target).exit_code == 0
        assert check("evaluate", results, "--data", tmp_path / target).exit_code == 0
    assert "1.000" in check("evaluate", results, "--data", parts).stdout


def test_wrong_path(parts):
    done = check("check", parts.with_name("my parts"))
    assert done.exit_code == 2
    assert "did you mean 'my parts ü'" in done.stderr


def test_images_folder_missing(parts):
    shutil.rmtree(parts / "images")
    done = check("check", parts)
    assert done.exit_code == 2
    assert "ö 1.png" in done.stdout
    assert "Check file_name and the image folder." in done.stdout


def test_results_instead_of_annotations(parts):
    (parts / "annotations" / "all.json").write_text("[]")
    done = check("evaluate", parts / "annotations" / "all.json", "--data", parts / "annotations" / "all.json")
    assert done.exit_code == 2
    assert "looks like a predictions file" in done.stderr


def test_yolo_without_settings_shows_the_file_to_write(parts, tmp_path):
    check("convert", parts, "--to", "yolo", "--out", tmp_path / "y")
    (tmp_path / "y" / "data.yaml").unlink()
    done = check("check", tmp_path / "y")
    assert done.exit_code == 2
    assert "names: {0: NAME0}" in done.stderr
    (tmp_path / "y" / "classes.txt").write_text("bolt\n")
    assert check("check", tmp_path / "y").exit_code == 0


def test_empty_image_and_empty_file(parts):
    (parts / "images" / "ö 1.png").write_bytes(b"")
    done = check("check", parts)
    assert done.exit_code == 2
    assert "image-unreadable" in done.stdout
    (parts / "annotations" / "all.json").write_bytes(b"")
    done = check("check", parts / "annotations" / "all.json")
    assert done.exit_code == 2
    assert "0 bytes" in done.output


def test_a_folder_of_images_and_the_folder_above(parts, tmp_path):
    assert f"Labels are in {parts}: give that folder." in check("check", parts / "images").stderr
    shutil.copytree(parts / "images", tmp_path / "alone" / "images")
    assert "scantling predict" in check("check", tmp_path / "alone" / "images").stderr
    above = check("check", tmp_path)
    assert above.exit_code == 2
    assert f"The data set is in {parts}" in above.stderr
