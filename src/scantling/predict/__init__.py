"""Images -> Instances in original pixels.

`sources.py` says which images, `predictor.py` runs a detector over them, `tta.py` joins what it sees at several sizes
and flipped.
"""
