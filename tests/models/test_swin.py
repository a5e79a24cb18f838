"""Our Swin against MMDetection 3.3.0's numbers (sizes its windows do not divide) and against timm's (sizes they do)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch

from scantling.models.rpn import propose
from scantling.models.swin import Swin, swin_shape
from scantling.models.weights.conversion import load_converted
from scantling.models.weights.mmdet import convert, num_classes_of, read_mmdet_checkpoint
from scantling.models.zoo import ModelConfig, build_model

CASE = "mask_rcnn_swin_t"
NAME = "swin_tiny_patch4_window7_224"


@pytest.fixture(scope="module")
def swin_golden(golden_checkpoint_of, golden_folder):
    """(model, conversion, arrays, image)."""
    weights = read_mmdet_checkpoint(golden_checkpoint_of(CASE)).weights
    model = build_model(
        ModelConfig(name="faster_rcnn_swin_t", roi_samples=0), num_classes_of(weights, "softmax")
    ).eval()
    conversion = convert(weights, model)
    load_converted(model, conversion)
    image = torch.from_numpy(np.load(golden_folder / "scene.npz")["image"])
    return model, conversion, dict(np.load(golden_folder / f"{CASE}.npz")), image


def close(found: torch.Tensor, expected: np.ndarray) -> None:
    expected = torch.from_numpy(expected)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_pyramid_rpn_and_box_head_are_the_references(swin_golden):
    model, _, arrays, image = swin_golden
    with torch.no_grad():
        features = model.features(image)
        output = model.rpn(features)
        proposals = torch.from_numpy(arrays["stage0_rois"][:, 1:])
        logits, deltas = model.head(model.pool(features, [proposals]))
        boxes, _ = propose(output, [(192, 256)], (1000, 1000), 0.7)
    for level, feature in enumerate(features):
        close(feature[:, ::16, ::4, ::4], arrays[f"fpn_{level}"])
        height, width = feature.shape[-2:]
        maps = output.logits[level].view(1, height, width, -1).permute(0, 3, 1, 2)
        close(maps[:, :, ::2, ::2], arrays[f"rpn_cls_{level}"])
        maps = output.deltas[level].view(1, height, width, -1).permute(0, 3, 1, 2)
        close(maps[:, :, ::2, ::2], arrays[f"rpn_reg_{level}"])
    close(logits, arrays["stage0_cls"])
    close(deltas.flatten(1), arrays["stage0_reg"])
    expected = torch.from_numpy(arrays["rpn_boxes"])
    nearest = (boxes[0][None] - expected[:, None]).abs().amax(-1).amin(1)
    assert float((nearest <= 0.05).float().mean()) >= 0.99


def test_only_the_mask_head_is_left_over(swin_golden):
    _, conversion, _, _ = swin_golden
    assert conversion.missing == conversion.mismatched == ()
    assert all(key.startswith("roi_head.mask_head.") for key in conversion.unused)
    assert len(conversion.unused) == 12


def test_same_as_timm_where_the_windows_divide_the_map():
    theirs = timm.create_model(NAME, features_only=True, img_size=448, drop_path_rate=0.0).eval()
    ours = Swin(swin_shape(NAME), 0.0).eval()
    ours.load_state_dict({key: theirs.state_dict()[key] for key in ours.state_dict()})
    image = torch.rand(1, 3, 448, 448, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for mine, expected in zip(ours(image), theirs(image), strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (NAME, (96, 7)),
        ("swin_base_patch4_window12_384.ms_in22k", (128, 12)),
        ("swinv2_tiny_window8_256", None),
        ("resnet50", None),
    ],
)
def test_the_published_sizes_are_known_by_name(name, expected):
    shape = swin_shape(name)
    assert (shape and (shape.channels, shape.window)) == expected


def test_the_case_states_the_published_settings(golden_folder):
    facts = json.loads((golden_folder / f"{CASE}.json").read_text())["model"]["backbone"]
    shape = swin_shape(NAME)
    assert (facts["embed_dims"], facts["depths"], facts["num_heads"], facts["window_size"]) == (
        shape.channels, list(shape.depths), list(shape.heads), shape.window
    )  # fmt: skip
