"""Detectors: a `Batch` goes in, losses or `Instances` come out.

`zoo.py` lists every named model with its numbers; `contract.py` is what all detectors promise, `two_stage.py` what
comes before their heads; `faster_rcnn.py`, `cascade_rcnn.py`, `htc.py`, `scnet.py` and `double_head.py` are the
methods; the other modules are the parts they are composed of.
"""
