"""Weights of few bits: where a model keeps them, and codes that can be trained."""

from onnxlr.training.storage.finding import stored_codes
from onnxlr.training.storage.straight import StoredCodes, whole

__all__ = ["StoredCodes", "stored_codes", "whole"]
