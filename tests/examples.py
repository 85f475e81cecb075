"""How many examples hypothesis draws: by default a few, twenty times as many with the profile "thorough"."""

from hypothesis import settings


def examples(share, **more):
    """Settings of a test that draws this share of the examples that others draw."""
    return settings(max_examples=max(1, round(share * settings.default.max_examples)), **more)
