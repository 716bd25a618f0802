"""Mixture-of-Experts language models, understood by training them live."""

import sys

from moe_lessons.support.imports import Refuse

__version__ = "0.1.0"
sys.meta_path.insert(0, Refuse)
