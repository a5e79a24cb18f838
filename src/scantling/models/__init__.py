"""Detectors: a `Batch` goes in, losses or `Instances` come out.

`zoo.py` lists every named model with its numbers; `two_stage.py` is the contract all detectors keep, and what comes
before their heads; `faster_rcnn.py`, `cascade_rcnn.py`, `htc.py` and `double_head.py` are the methods;
the other modules are the parts they are composed of.
"""
