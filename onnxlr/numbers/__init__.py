"""Formats: how numbers are kept."""

from onnxlr.numbers.encoding import Encoded, encode
from onnxlr.numbers.formats import FORMATS, GROUP_SIZES, MOST_TERMS, ROUNDINGS, Format

__all__ = ["FORMATS", "GROUP_SIZES", "MOST_TERMS", "ROUNDINGS", "Encoded", "Format", "encode"]
