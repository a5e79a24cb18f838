"""The stages of a run, in the order of the data: what each is computed from, what it leaves, how it is done.

pretraining.py   own crops -> weights of a backbone
training.py      a member's training and what it sees: candidates; of a segmenter, score maps
detecting.py     candidates -> detections: suppression, tuned or as the recipe says; tables of variants
semantic.py      score maps: one voice out of several folds, any tool's taken over, measured
combining.py     members -> one set of detections: tuned weights, ensemble, elimination
refining.py      a refiner, where it may, sharper boxes; the labels audited
evaluation.py    numbers, tables, report
"""
