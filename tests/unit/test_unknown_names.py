"""The name that somebody may have meant."""

from __future__ import annotations

from loraxs_search.errors import meant


def test_the_one_that_is_nearly_the_same_is_meant():
    for name, known, near in [
        ("learnin_rate", ["learning_rate", "head_learning_rate"], "learning_rate"),  # clearly nearer than the other one
        ("movie_review", ["movie_reviews", "movie_reviews_text"], "movie_reviews"),
        ("reviewz", ["reviews", "reviewx"], ""),
        ("label-5", [f"label-{number:03d}" for number in range(500)], ""),
        ("POSITIVE", ["negative", "positive"], "positive"),
        ("7", ["00006", "00007"], "00007"),
        ("00008", ["00007"], ""),  # another number is another thing
        ("reviews:9", ["reviews:1", "reviews@c"], ""),  # nor is what is like it in another way
        ("sst", ["sst2"], "sst2"),
    ]:
        assert meant(name, known) == near, name
