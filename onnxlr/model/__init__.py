"""Reading, splicing and saving the proto of a model."""

from onnxlr.model.model import Model
from onnxlr.model.opening import open_model
from onnxlr.model.splicing import Splice, splice

__all__ = ["Model", "Splice", "open_model", "splice"]
