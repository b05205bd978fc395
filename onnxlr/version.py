"""The version of the installed package, from its metadata."""

from importlib.metadata import version

__all__ = ["VERSION"]

VERSION = version("onnxlr")
