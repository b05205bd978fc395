"""The ternary operators of the domain `onnxlr`: packed codes, nodes, and what they mean.

docs/operators.md is their specification. Nothing here runs a model or needs the op library.
"""
