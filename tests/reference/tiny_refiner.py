"""Settings of a refiner that is trained within a second."""

TINY_REFINER = (
    "model.backbone=test_resnet",
    "model.side=32",
    "model.hidden=8",
    "train.epochs=1",
    "train.repeats=1",
    "train.batch_size=2",
)
