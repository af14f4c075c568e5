"""A copied space means what the original means, wherever it lies."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loraxs_search.search_space import load_space, portable_text
from loraxs_search.shipped_spaces import shipped_space_path, shipped_spaces


@pytest.mark.parametrize("name", shipped_spaces())
def test_a_copy_of_a_shipped_space_is_that_space(name, tmp_path):
    copy = tmp_path / f"{name}.yaml"
    copy.write_text(portable_text(shipped_space_path(name)))
    original = load_space(name)
    copied = load_space(str(copy))
    assert replace(copied, text="", source="", folder="") == replace(original, text="", source="", folder="")


def test_comments_and_layout_stay(tmp_path):
    text = shipped_space_path("movie_reviews").read_text()
    copied = portable_text(shipped_space_path("movie_reviews"))
    changed = [(a, b) for a, b in zip(text.splitlines(), copied.splitlines(), strict=True) if a != b]
    assert len(changed) == 4, "three files of data, and the schema"
    assert all(b.replace(f"{shipped_space_path('movie_reviews').parent}/", "") == a for a, b in changed)


def test_every_relative_path_is_found_and_nothing_else_is_touched(tmp_path):
    (tmp_path / "a b").mkdir()
    path = tmp_path / "space.yaml"
    path.write_text(
        "# data/train.csv\n"
        "task: {name: t, data: {data_files: {train: 'a b/train.csv', test: /abs/test.csv, validation: ../up.csv}}}\n"
        "base_model: {id: ./bases/mine, revision: data/train.csv}  # ./bases/mine\n"
    )
    assert portable_text(path) == (
        "# data/train.csv\n"
        f'task: {{name: t, data: {{data_files: {{train: "{tmp_path}/a b/train.csv", test: /abs/test.csv,'
        f" validation: {tmp_path.parent}/up.csv}}}}}}\n"
        f"base_model: {{id: {tmp_path}/bases/mine, revision: data/train.csv}}  # ./bases/mine\n"
    )


@pytest.mark.parametrize("base", ["org/name", "name", "~/bases/mine", "/bases/mine"])
def test_a_base_that_is_no_relative_folder_stays(base, tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(f"base_model: {base}\n")
    assert portable_text(path) == f"base_model: {base}\n"
    path.write_text("")
    assert portable_text(path) == ""
