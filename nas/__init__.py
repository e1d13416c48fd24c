"""Finds the best tiny pre-trained language model within a latency budget measured on your device."""

__version__ = "0.1.0"
