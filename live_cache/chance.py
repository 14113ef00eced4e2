"""
Random numbers for jitter and samples.

Not those of the module ``random``: a program that seeds it is to get the numbers that it would get without us, and
workers that were forked from one process must not go on in step.
"""

from __future__ import annotations

import random
from typing import Final

__all__ = ["chance"]

chance: Final = random.SystemRandom()
