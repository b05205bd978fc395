"""Reading, splicing and saving the proto of a model."""

from onnxlr.model.model import Model
from onnxlr.model.opening import open_model
from onnxlr.model.sources import ModelSource, check_beside, open_anew, open_source
from onnxlr.model.splicing import Splice, splice

__all__ = [
    "Model",
    "ModelSource",
    "Splice",
    "check_beside",
    "open_anew",
    "open_model",
    "open_source",
    "splice",
]
