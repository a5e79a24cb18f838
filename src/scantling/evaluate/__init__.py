"""How good predictions are, and what is wrong with them.

`coco_eval` gives the official COCO numbers, `breakdown` the errors behind them.
"""
