"""Training of models and of what they are rewritten as; needs the extra `onnxlr[train]`."""

from onnxlr.training.trainable import TrainableModel

__all__ = ["TrainableModel"]
