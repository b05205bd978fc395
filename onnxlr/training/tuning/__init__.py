"""Trains a rewritten model towards the original, or on labels."""
