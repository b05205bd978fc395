"""Formats: how numbers are kept."""

from onnxlr.numbers.encoding import Encoded, encode
from onnxlr.numbers.formats import FORMATS, Format

__all__ = ["FORMATS", "Encoded", "Format", "encode"]
