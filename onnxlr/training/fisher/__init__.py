"""How much each entry of weights matters, by gradients of single samples."""
