"""The stages of a run, in the order of the data: what each is computed from, what it leaves, how it is done.

context.py       what every stage may look at; the folds; where files lie
pretraining.py   own crops -> weights of a backbone
training.py      a member's training and what it sees: candidates
detecting.py     candidates -> detections: suppression, tuned or as the recipe says; tables of variants
combining.py     members -> one set of detections: tuned weights, ensemble, elimination
judging.py       numbers, tables, report
"""
