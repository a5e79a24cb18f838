"""VOC's XML: pixels counted from 1, both edges inside the box; decimals where a box has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from xml.sax.saxutils import escape

from scantling.data.coco.records import Annotation, ImageRecord
from scantling.data.formats.voc import CROWD, FLAGS

_CONTROL = dict.fromkeys(code for code in range(32) if code not in (9, 10, 13))


def voc_text(
    name: PurePosixPath,
    record: ImageRecord,
    annotations: Sequence[Annotation],
    class_names: Sequence[str],
    losses: Counter[str],
) -> str:
    """The XML file of an image.

    Args:
        name: Of the image inside `JPEGImages`.
        record: The image.
        annotations: Its objects.
        class_names: Names in label order.
        losses: Counts what could not be kept.
    """
    height, width = record.size_hw
    lines = [
        "<annotation>",
        "  <folder>JPEGImages</folder>",
        f"  <filename>{_escaped(str(name))}</filename>",
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
    ]
    for annotation in annotations:
        lines += _object(annotation, class_names[annotation.label])
        losses["masks (VOC's XML has none)"] += annotation.segmentation is not None
        losses["crowd flags (written as difficult)"] += annotation.is_crowd
    return "\n".join([*lines, "</annotation>"]) + "\n"


def _object(annotation: Annotation, class_name: str) -> list[str]:
    x, y, width, height = annotation.box_xywh
    edges = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
    bounds = "".join(f"<{edge}>{_number(value)}</{edge}>" for edge, value in edges.items())
    flags = {flag for flag in FLAGS if annotation.extra.get(flag) in (1, True)}
    flags |= (
        {"difficult"} if not annotation.is_object or annotation.extra.get("ignore") in (1, True) else set()
    )
    marks = "".join(f"<{flag}>{int(flag in flags)}</{flag}>" for flag in FLAGS)
    marks += f"<{CROWD}>1</{CROWD}>" if annotation.is_crowd else ""
    return [
        "  <object>",
        f"    <name>{_escaped(class_name)}</name>{marks}",
        f"    <bndbox>{bounds}</bndbox>",
        "  </object>",
    ]


def _number(value: float) -> str:
    """Six decimals at most; an edge at -1, VOC's 0, keeps a decimal so that it is not taken for a foreign habit."""
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0.000001" if text in ("0", "-0") else text


def _escaped(text: str) -> str:
    return escape(text.translate(_CONTROL))
