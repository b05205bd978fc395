"""Fits of layers: in processes side by side, and from one run to the next."""

from onnxlr.fits.orders import Fitting, Order, StoredWeight, Wish, fit_side_by_side
from onnxlr.fits.store import FitStore
from onnxlr.fits.workers import ALONE, Piece, Workers, usual_jobs

__all__ = [
    "ALONE",
    "FitStore",
    "Fitting",
    "Order",
    "Piece",
    "StoredWeight",
    "Wish",
    "Workers",
    "fit_side_by_side",
    "usual_jobs",
]
