"""The codes of findings about predictions: results in COCO's form, and maps of pixels."""

from __future__ import annotations

from scantling.data.finding_kinds import Code, Kind

_S, _G, _W, _N = Kind.STRUCTURAL, Kind.GEOMETRY, Kind.SUSPICIOUS, Kind.NOTE

RESULTS = {
    "results-is-coco": Code(
        _S, "A COCO annotations file where predictions are needed.", "Give the list of predictions."
    ),
    "results-not-list": Code(_S, "The file is not a list of predictions.", "Give the list of predictions."),
    "results-empty": Code(_W, "No prediction at all; AP is 0.", "Check the score threshold."),
    "results-image-unknown": Code(
        _G, "Predictions for images that the data set does not have.", "Use the file of the same split."
    ),
    "results-image-missing": Code(_G, "Predictions without image_id.", "Write image_id or file_name."),
    "results-image-ambiguous": Code(
        _S,
        "Numbers as image_id can be ids of the data set or something else, and which images are meant differs.",
        "Write each image's file_name beside its image_id, or say what the numbers are: --image-ids id or file "
        "(in a recipe, members.NAME.image_ids).",
    ),
    "results-image-differs": Code(
        _W,
        "file_name and image_id name different images; the file counts.",
        "Write the data set's own image_id.",
    ),
    "results-boxes-outside": Code(
        _W,
        "Predicted boxes or masks that reach far beyond their image.",
        "Check that image_id is that of this data set.",
    ),
    "results-image-named": Code(
        _W, "Images are named by their files; the data set's ids are used instead, and written back."
    ),
    "results-category-unknown": Code(
        _G, "Predictions of categories that the data set does not have.", "Use the data set's category ids."
    ),
    "results-category-missing": Code(_G, "Predictions without category_id.", "Write category_id."),
    "results-category-counted": Code(
        _W,
        "Numbers as category_id, and labels that have no ids (VOC, DelftBikes): the numbering assumed is named.",
        "If the predictions count otherwise, give each its category_name, or lay a categories.json beside VOC labels: "
        '[{"id": 1, "name": "bolt"}, ...]; or `scantling convert` the set to COCO, which has ids, and use those.',
    ),
    "results-category-differs": Code(
        _W, "category_name and category_id disagree; the name counts.", "Use the data set's category ids."
    ),
    "results-score": Code(_S, "A score is missing or not a finite number.", "Write a number in 0..1."),
    "results-score-range": Code(_W, "Scores outside 0..1.", "Scale them; the order is what counts for AP."),
    "results-box": Code(_G, "A predicted bbox is not four finite numbers with size >= 0.", "Correct it."),
    "results-boxes-xyxy": Code(
        _W, "The predicted boxes look like [x1, y1, x2, y2].", "COCO boxes are [x, y, width, height]."
    ),
    "results-shapeless": Code(_S, "A prediction has neither bbox nor segmentation.", "Add one."),
    "results-mixed": Code(
        _W, "Some predictions lack the box or the mask others have; a missing box is that of the mask.", ""
    ),
    "results-mask-empty": Code(
        _W,
        "A predicted mask without area; it counts as an empty mask, which matches no object.",
        "Leave such predictions out, or give no segmentation with them.",
    ),
    "results-rle": Code(_S, "A predicted mask is not a sound RLE of its image's size.", "Encode it again."),
    "results-lists-count": Code(
        _S,
        "Predictions image by image (labels, scores, bboxes, masks) have more or fewer entries than there are images.",
        "Give the whole annotations file whose images were predicted: entry i belongs to its i-th image.",
    ),
    "results-lists-entry": Code(
        _S,
        "In predictions image by image, the lists of an image are not of one length, or what they should hold.",
        "Write for each prediction a label 0..K-1, a score, a box [x1, y1, x2, y2] and, if any, a mask.",
    ),
    "results-uncovered": Code(_W, "Images without any prediction.", "Check that all images were predicted."),
    "results-disjoint": Code(_W, "Result files that cover different images.", "Predict the same images."),
    "results-categories-differ": Code(
        _W,
        "Result files that predict different categories.",
        "Where a detector cannot predict a category, give it the weight 0 there.",
    ),
    "results-same-twice": Code(_W, "The same predictions are given twice.", "Give each file once."),
    "objects-over-limit": Code(
        _W,
        "More objects of one class in an image than predictions are counted there.",
        "Raise --max-dets, or evaluate.max_dets in a recipe.",
    ),
    "results-dropped": Code(_W, "Predictions were left out because they are unusable."),
}

MAPS = {
    "maps-file": Code(
        _G, "A map of pixels that cannot be read.", "Write a PNG of one channel, or an NPY of numbers."
    ),
    "maps-missing": Code(
        _G, "Images without a map.", "Write a map for each, called like the image: a.png or a.npy for a.jpg."
    ),
    "maps-twice": Code(_S, "Two maps of one image.", "Keep one of them."),
    "maps-unused": Code(_W, "Maps that belong to no image of the data set.", "Give the maps of this split."),
    "maps-size": Code(
        _G, "A map that has not the proportions of its image.", "Write maps of the images' own sizes."
    ),
    "maps-values": Code(
        _G, "A map with numbers that are no scores and no labels.", "Write scores in 0..1, or in 0..255."
    ),
    "maps-reading": Code(
        _S,
        "Numbers in maps that can mean several things, or none.",
        "Say what they are: --map-values scores, foreground, ids or positions (in a recipe, "
        "members.NAME.map_values).",
    ),
}
