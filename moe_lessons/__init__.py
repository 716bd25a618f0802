"""Mixture-of-Experts language models, understood by training them live."""

__version__ = "0.1.0"
