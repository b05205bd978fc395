"""Chooses for each layer among what all methods offer, by measured error and latency."""
