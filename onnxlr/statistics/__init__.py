"""What calibration saw of each layer's inputs, in memory and in a file."""

from onnxlr.statistics.moments import Moments, PairMoments, check_covariance
from onnxlr.statistics.statistics import LayerStatistics, Statistics

__all__ = ["LayerStatistics", "Moments", "PairMoments", "Statistics", "check_covariance"]
