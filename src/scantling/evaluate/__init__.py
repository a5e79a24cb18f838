"""How good predictions are, and what is wrong with them.

`coco_eval` gives the official COCO numbers with intervals over images (`bootstrap`), `compare` the difference of two
results, `breakdown` the errors behind the numbers, `curves`, `confusion` and `calibration` what they look like.
"""
