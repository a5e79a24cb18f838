"""Every code that the input layer can report; the text of `docs/findings.md`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from scantling.data.finding_kinds import Code, Kind
from scantling.data.result_codes import MAPS, RESULTS

_S, _G, _W, _N = Kind.STRUCTURAL, Kind.GEOMETRY, Kind.SUSPICIOUS, Kind.NOTE

_FILE = {
    "file-missing": Code(_S, "There is no such file or folder.", "Check the path."),
    "file-is-folder": Code(_S, "A folder where a file is needed.", "Name the file itself."),
    "file-empty": Code(_S, "The file has 0 bytes.", "Write or download it again."),
    "file-unreadable": Code(_S, "The file cannot be opened.", "Check its permissions and its name."),
    "json-syntax": Code(_S, "Not JSON, or cut off; line and column are given.", "Write the file again."),
    "json-encoding": Code(_S, "The text is not UTF-8.", "Save it as UTF-8."),
    "json-foreign": Code(_S, "Another kind of file (pickle, zip, HTML, Git-LFS pointer).", "Give the JSON."),
    "json-duplicate-key": Code(_S, "One object holds the same key twice.", "Remove all but one."),
    "json-too-deep": Code(_S, "Lists or objects are nested thousands of levels deep.", "Repair the file."),
    "json-huge-integer": Code(_S, "An integer of more than 4300 digits.", "Repair the file."),
    "json-nan": Code(_S, "The token NaN or Infinity, which is not JSON.", "Write null or a finite number."),
}

_STRUCTURE = {
    "coco-is-results": Code(
        _S,
        "A list at the top: looks like a predictions file.",
        "Give the annotations file: an object with images, annotations and categories.",
    ),
    "coco-not-object": Code(_S, "The top of the file is not an object.", "Give a COCO annotations file."),
    "key-missing": Code(
        _S,
        "A top-level key is missing or null.",
        "A COCO file has the lists images, annotations, categories.",
    ),
    "key-not-list": Code(_S, "A top-level key does not hold a list.", "Make it a list of objects."),
    "record-not-object": Code(_S, "An element of a list is not an object.", "Remove or repair it."),
    "no-images": Code(_S, "The file has no images (a warning outside training).", "Give a file with images."),
    "no-annotations": Code(
        _S, "There are no annotations (a warning outside training; AP is then null).", "Label some images."
    ),
    "no-objects": Code(
        _S,
        "There are annotations, but only crowd regions or ignored ones (a warning outside training; AP is then null).",
        "If each region is one object, set its iscrowd to 0: some tools write 1 for every mask that is an RLE.",
    ),
    "no-categories": Code(
        _S, "There are no categories (a warning outside training).", "Declare the classes in `categories`."
    ),
    "id-missing": Code(_S, "A record has no id, or null.", "Give every record its own id."),
    "id-type": Code(
        _S,
        "An id is not usable as one.",
        "Category and annotation ids are integers, image ids integers or strings.",
    ),
    "id-duplicate": Code(_S, "Two records have the same id.", "Give every record its own id."),
    "reference-missing": Code(_S, "An annotation has no image_id or category_id.", "Add it."),
    "image-unknown": Code(_S, "An annotation names an image that is not in the file.", "Correct image_id."),
    "category-unknown": Code(_S, "An annotation names a category not in the file.", "Correct category_id."),
    "category-name": Code(
        _S, "A category has no name, or no line of text.", "Give every category a name in one line."
    ),
    "category-name-twice": Code(_W, "Two categories have one name.", "Rename or merge them."),
    "category-unused": Code(_W, "A declared class has no annotation.", "Remove it, or label some objects."),
    "category-crowd-only": Code(
        _G,
        "A class has no object, only crowd regions or ignored ones (a warning outside training): nothing of it is "
        "learned, and its AP is undefined.",
        "If each region is one object, set its iscrowd (or difficult, ignore) to 0; else remove the class, or train "
        "the others with --skip-invalid.",
    ),
    "crowd-value": Code(_S, "iscrowd is neither 0 nor 1.", "Write 0 or 1."),
    "area-value": Code(_W, "The area is not a finite number >= 0; it is computed instead.", "Remove it."),
    "extra-value": Code(_W, "A further key holds NaN or nests too deep; it is not kept.", "Remove the key."),
    "annotations-dropped": Code(_W, "Annotations were left out because they are unusable."),
    "masks-dropped": Code(
        _W, "Masks were left out because they are unusable; the boxes of their annotations are kept."
    ),
    "images-dropped": Code(_W, "Images were left out because they are unusable, with their annotations."),
    "images-without-annotations": Code(_N, "Images without objects; they count as background."),
    "images-crowd-only": Code(
        _N, "Images with crowd regions or ignored objects only; there is nothing to find on them."
    ),
    "keys-not-used": Code(_N, "Keys of annotations that mean nothing here; they are kept."),
    "annotation-ids-renumbered": Code(
        _N, "Annotation ids do not fit 64 bits; inside, objects are numbered by position instead."
    ),
}

_GEOMETRY = {
    "box-missing": Code(_S, "An annotation has neither bbox nor mask.", "Add bbox: [x, y, width, height]."),
    "box-derived": Code(_W, "No bbox; it was derived from the mask.", "Write the bbox into the file."),
    "box-type": Code(_S, "A bbox is not four finite numbers.", "Write [x, y, width, height] in pixels."),
    "box-size": Code(_G, "A bbox has no width or no height.", "Write [x, y, width, height] in pixels."),
    "box-outside": Code(_G, "A bbox lies wholly outside its image.", "Correct the box or the image size."),
    "box-clipped": Code(_W, "A bbox leaves its image by 1 px or more; it is clipped.", "Correct the box."),
    "box-twice": Code(_W, "Two annotations of one class have the same box.", "Remove one of them."),
    "boxes-xyxy": Code(
        _G,
        "The boxes look like [x1, y1, x2, y2] (a warning if there are only one or two).",
        "COCO boxes are [x, y, width, height].",
    ),
    "boxes-normalised": Code(_S, "All boxes lie within 0..1.", "COCO boxes are in pixels."),
    "box-mask-differ": Code(_W, "A bbox is not the box around its mask.", "Recompute the bbox."),
    "box-rotated": Code(
        _W,
        "Turned boxes are read as the upright boxes around them (a note where the settings say that all are).",
        "Look at some of them.",
    ),
    "labels-upright": Code(
        _W,
        "Boxes that fit the image with its EXIF rotation applied, and leave it as it is declared.",
        "Exchange width and height of the image record: labels and size then both mean the upright picture.",
    ),
    "mask-missing": Code(_G, "Segmentation, but an annotation has no mask.", "Label it, or use detection."),
    "mask-empty": Code(
        _W, "A mask without area; the box is kept for detection, segmentation drops the object.", "Label it."
    ),
    "mask-type": Code(
        _G, "A segmentation is neither polygons nor RLE.", "Write a list of polygons or an RLE."
    ),
    "polygon-shape": Code(
        _G,
        "A polygon is not a list of at least three x, y pairs.",
        "A segmentation is a list of polygons [x1, y1, x2, y2, x3, y3, ...].",
    ),
    "polygon-number": Code(
        _S, "A polygon holds NaN, infinity, or coordinates absurdly far away.", "Correct it."
    ),
    "polygon-outside": Code(_G, "A polygon lies wholly outside its image.", "Correct it or the image size."),
    "rle-size": Code(_S, "An RLE is not of its image's size.", "`size` is [height, width] of the image."),
    "rle-counts": Code(_S, "The run lengths of an RLE are damaged.", "Encode the mask again."),
}

_IMAGES = {
    "image-name-missing": Code(_S, "An image has no file_name.", "Add it, relative to the image folder."),
    "image-name-outside": Code(_G, "A file_name leaves the image folder.", "Use a name inside the folder."),
    "image-name-backslash": Code(_G, "A file_name holds a backslash.", "Use `/` between folder and file."),
    "image-name-twice": Code(_W, "Two image records name one file.", "Merge them."),
    "image-size": Code(
        _G, "width or height of an image record is unusable.", "Write the size of the file in pixels."
    ),
    "image-size-missing": Code(
        _S, "No width and height, and the file cannot tell them.", "Add them, or the image file."
    ),
    "image-size-differs": Code(
        _G,
        "The file's size is not the record's width and height.",
        "Correct the record, or restore the file.",
    ),
    "image-missing": Code(_G, "There is no such image file.", "Check file_name and the image folder."),
    "image-unreachable": Code(
        _G, "An image could not be fetched from its URL.", "Check the URL and the network."
    ),
    "image-unreadable": Code(_G, "The image file is empty, a folder, or cannot be opened.", "Restore it."),
    "image-format": Code(
        _G, "Not an image of a supported kind.", "Supported: JPEG, PNG, BMP, WebP, TIFF, GIF of 8 or 16 bits."
    ),
    "image-damaged": Code(_G, "The pixels are cut off or damaged.", "Restore the file."),
    "image-surplus": Code(
        _W, "Pixel data is left over after decoding: perhaps damaged.", "Look at the image."
    ),
    "image-too-large": Code(_G, "More pixels than are ever decoded.", "Tile or shrink the image."),
    "image-large": Code(_W, "A very large image.", "Expect much memory; consider tiles."),
    "image-animated": Code(_W, "Several frames or pages; the first is used.", "Save the frame as an image."),
    "image-range": Code(
        _N,
        "Pictures of 16 bits that use fewer; the range that they use is scaled to black and white.",
        "If they are dark, and no camera of fewer bits took them, set data.white=65535.",
    ),
    "image-orientation": Code(
        _W,
        "An EXIF rotation, and width and height do not tell whether the labels follow it; it is applied.",
        "Rotate the pixels and remove the EXIF entry.",
    ),
    "image-orientation-kept": Code(
        _N,
        "Images whose EXIF rotation is not applied, because the labels' width and height are the stored ones.",
        "Look at some of them: labels measured in the upright picture would lie beside their objects.",
    ),
    "image-unlisted": Code(_N, "Pictures in the image folder that no split names."),
    "not-an-image": Code(_W, "A file in an image folder that is no image.", "Move it elsewhere."),
    "no-image-in-folder": Code(_S, "A folder without a single image.", "Give a folder with images."),
}

_SPLITS = {
    "split-categories-differ": Code(
        _S, "Two splits name their classes differently.", "Use one list of categories (same ids and names)."
    ),
    "split-class-unseen": Code(_W, "A class occurs in validation, never in training.", "Move some images."),
    "split-same-file": Code(_W, "Leakage: one file is in both splits.", "Remove it from one of them."),
    "split-same-pixels": Code(_W, "Leakage: the same picture is in both splits.", "Remove it from one."),
    "split-union": Code(
        _N, "A split is others put together, such as trainval; its parts are compared instead."
    ),
    "split-missing": Code(_S, "The annotations of a split were not found.", "Use one of the known layouts."),
}

_FORMATS = {
    "format-unknown": Code(_S, "A folder in none of the known layouts.", "See docs/formats.md."),
    "format-several": Code(_N, "A folder that fits more than one layout; the first named is read."),
    "split-choice": Code(_S, "A data set of several splits where one is needed.", "Name it: DIR:SPLIT."),
    "split-file": Code(_S, "A split file that is incomplete.", "Write it with `scantling split`."),
    "text-encoding": Code(_S, "A text file is not UTF-8.", "Save it as UTF-8."),
    "xml-syntax": Code(_G, "Not XML; line and column are given.", "Repair or remove the file."),
    "xml-doctype": Code(_G, "XML with a document type declaration.", "Remove the line <!DOCTYPE ...>."),
    "yaml-syntax": Code(_S, "Not YAML; the line is given.", "Repair the file."),
    "label-file-missing": Code(_G, "A listed image has no label file.", "Label it, or take it off the list."),
    "voc-object": Code(_G, "An object without name or bndbox.", "Complete or remove it."),
    "voc-polygon": Code(
        _G, "A polygon that is no mask; without it, the box remains.", "Correct or remove it."
    ),
    "voc-counts-from-zero": Code(
        _W,
        "Boxes have edges 0, but VOC counts pixels from 1; they are clipped.",
        "If the labels count from 0, all boxes are 1 px off: add 1 to every edge.",
    ),
    "label-unused": Code(_W, "Label files that belong to no image.", "Rename them, or add their images."),
    "label-spelling": Code(
        _W, "Label files spelled unlike their images; they are used.", "Give both the same name."
    ),
    "label-shared": Code(
        _W, "One label file serves several images of one name.", "Give every image a name of its own."
    ),
    "image-unlabelled": Code(
        _W, "Images without a label file, where every image has one; they are not used.", "Label them."
    ),
    "class-list": Code(_S, "An empty line in a list of class names.", "Remove the line, or name the class."),
    "yolo-names-missing": Code(_S, "The names of the YOLO classes are not known.", "Write a data.yaml."),
    "yolo-line": Code(
        _G,
        "A label line is neither a box nor a polygon nor what the settings say.",
        "Write: class x y width height.",
    ),
    "yolo-class": Code(_S, "A class number that `names` does not have.", "Correct the number or the names."),
    "yolo-range": Code(_G, "Label coordinates outside 0..1.", "Divide them by the image's width and height."),
    "yolo-reading": Code(
        _S,
        "Rows that can be read in two ways, or settings that do not say how.",
        "Write `task` or `kpt_shape`.",
    ),
    "yolo-mixed": Code(
        _W,
        "Label files with plain boxes beside longer rows (polygons): Ultralytics does not use such images.",
        "Beside polygons, write a box as its corners (class x1 y1 x2 y1 x2 y2 x1 y2), as `convert --to yolo` does.",
    ),
    "yolo-keypoints": Code(_N, "Rows with key points, of which only the boxes are used."),
    "part-layout": Code(_S, "Not a DelftBikes file.", 'Expected {"a.jpg": {"parts": {...}}}.'),
    "part-state": Code(_G, "A part without a known state.", "States: intact, damaged, occluded, absent."),
    "parts-not-targets": Code(_N, "Parts whose state excludes them as targets."),
}

_CHECK = {
    "box-tiny": Code(_W, "Boxes too small to be learned or scored reliably.", "Check them; consider tiles."),
    "box-huge": Code(_W, "Boxes that cover almost their whole image.", "Check them."),
    "box-thin": Code(_W, "Boxes more than 20 times as long as wide.", "Check them."),
    "box-near-twice": Code(_W, "Two boxes of one class almost coincide.", "Remove one of each pair."),
    "class-rare": Code(_W, "A class with very few objects in training.", "Label more of it."),
    "split-near-pixels": Code(
        _W,
        "Leakage: two splits show the same scene, shifted or re-coded.",
        "Keep such images in one split: `split --group`.",
    ),
    "image-near-twice": Code(_N, "Two images of one split show the same scene."),
}

_AUDIT = {
    "decisions-file": Code(
        _S, "Not a file of suspects or of decisions about them.", "Write it with `scantling audit`."
    ),
    "decisions-other-data": Code(
        _S, "Decisions about labels that are not those given.", "Audit these labels, or give the others."
    ),
    "decision-record": Code(_S, "An incomplete suspect or decision.", "Write it with `scantling audit`."),
    "decision-unknown": Code(
        _S, "A decision about an image, annotation or category that is not there.", "Audit the labels again."
    ),
}

CODES: Mapping[str, Code] = MappingProxyType(
    _FILE | _STRUCTURE | _GEOMETRY | _IMAGES | _SPLITS | _FORMATS | _CHECK | RESULTS | MAPS | _AUDIT
)
"""Code name -> kind, meaning, remedy; in the order of the documentation."""
