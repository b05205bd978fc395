"""Input data: what a model takes, data from files and functions, or random inputs."""

from onnxlr.calibration.data import DataSource, check_files, load_feeds
from onnxlr.calibration.random_inputs import random_feeds
from onnxlr.calibration.signature import Feeds, InputSpec, check_feeds, signature

__all__ = [
    "DataSource",
    "Feeds",
    "InputSpec",
    "check_feeds",
    "check_files",
    "load_feeds",
    "random_feeds",
    "signature",
]
