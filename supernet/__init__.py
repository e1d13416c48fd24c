"""Weights: the supernet, its training by distillation, and the encoders extracted from it."""
