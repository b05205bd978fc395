"""Trains a model through ternary factors, or ternary weights."""
