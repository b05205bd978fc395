"""Trains the factors of a singular value decomposition, with fewer and fewer of them."""
