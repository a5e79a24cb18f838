"""Data sets of other tools, read into the one form the rest knows: `CocoDataset`.

    folder ── detect ──► Layout ── voc / yolo / delftbikes ──► Document ── coco.parse_coco ──► CocoDataset

A reader only finds the records and remembers where each was written; every check of boxes, masks, images and
categories is COCO's own (`data.coco`), and its findings are told with the file and line of the original.
"""
