"""Stories: filler text that teaches nothing any task asks.

"Vamo went to the old mill . There Vamo saw two boats . Then Vamo slept ."
"""

from __future__ import annotations

import random

from evalsuite.microworld.world import name, pick

PLACES = (
    "mill", "lake", "field", "market", "harbour", "forest", "garden", "tower", "barn", "island",
    "valley", "meadow",
)  # fmt: skip
SIGHTS = (
    "boats", "clouds", "lights", "geese", "apples", "stones", "tents", "wagons", "mushrooms",
    "waves", "kites", "ants",
)  # fmt: skip
MOODS = ["glad", "tired", "hungry", "proud", "calm", "curious"]
LOOKS = ["old", "small", "quiet", "green", "empty", "far"]
ENDS = ("slept", "went home", "sang a song", "told a friend", "sat down", "began to laugh")


def text(rng: random.Random) -> str:
    """Two or three sentences about one person."""
    who = name(rng)
    told = f"{who} went to the {pick(rng, LOOKS)} {pick(rng, PLACES)} ."
    if rng.random() < 0.6:
        told += f" There {who} saw {pick(rng, SIGHTS)} and was {pick(rng, MOODS)} ."
    return f"{told} Then {who} {pick(rng, ENDS)} .\n"
