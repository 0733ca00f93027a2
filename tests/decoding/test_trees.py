import numpy as np
import pytest

from jaxinfer.decoding.drafts import trees

pytestmark = pytest.mark.quick


def test_ancestors_and_depths_against_a_walk():
    rng = np.random.default_rng(0)
    for width in (1, 2, 7, 33):
        parent = np.array([[-1, *(rng.integers(0, t) for t in range(1, width))] for _ in range(4)])
        sees, depth = np.asarray(trees.ancestors(parent)), np.asarray(trees.depths(parent))
        for row in range(4):
            for t in range(width):
                way, at = [], t
                while at >= 0:
                    way.append(at)
                    at = parent[row, at]
                assert np.nonzero(sees[row, t])[0].tolist() == sorted(way)
                assert depth[row, t] == len(way) - 1


def test_a_chain_is_a_tree():
    parent = np.arange(9)[None] - 1
    np.testing.assert_array_equal(trees.ancestors(parent)[0], np.tril(np.ones((9, 9), bool)))
    np.testing.assert_array_equal(trees.depths(parent)[0], np.arange(9))


def test_paths_share_what_they_begin_with():
    parent, rank = trees.from_paths([(1,), (0, 0, 0), (0, 2)])
    assert parent.tolist() == [-1, 0, 0, 1, 1, 3]
    assert rank.tolist() == [0, 0, 1, 0, 2, 0]


def test_levels_hold_the_columns_of_each_depth():
    assert [columns.tolist() for columns in trees.levels(np.array([-1, 0, 0, 1, 3, 2]))] == [[0], [1, 2], [3, 5], [4]]
