"""Input data, and what a model's layers see of it."""

from onnxlr.calibration.data import Batches, DataSource, check_files, label_of, load_feeds
from onnxlr.calibration.gathering import HOLDOUT, Sources, gather
from onnxlr.calibration.importance import ImportanceSource
from onnxlr.calibration.observation import observe
from onnxlr.calibration.pairs import observe_pairs
from onnxlr.calibration.random_inputs import random_feeds
from onnxlr.calibration.signature import Feeds, InputSpec, check_feeds, signature

__all__ = [
    "HOLDOUT",
    "Batches",
    "DataSource",
    "Feeds",
    "ImportanceSource",
    "InputSpec",
    "Sources",
    "check_feeds",
    "check_files",
    "gather",
    "label_of",
    "load_feeds",
    "observe",
    "observe_pairs",
    "random_feeds",
    "signature",
]
