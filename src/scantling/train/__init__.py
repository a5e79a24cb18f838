"""The one training loop and the checkpoint format: detectors, pretraining, refiner and semantic member use both.

config.py is what a recipe may set, loop.py the loop, checkpoint.py the file it writes; optim, ema, state, history,
progress, signals, devices and rundir are the loop's parts. Nothing here is imported until it is asked for, so that
`scantling.train.config` can be read without loading torch.
"""
