"""The verbs that train, each a function; they need the extra `onnxlr[train]`.

torch is imported when one of them is called, so that everything else works without it.
"""

from onnxlr.training_verbs.fisher_information import fisher
from onnxlr.training_verbs.svd import train_svd
from onnxlr.training_verbs.ternary import train_ternary
from onnxlr.training_verbs.tuning import tune

__all__ = ["fisher", "train_svd", "train_ternary", "tune"]
