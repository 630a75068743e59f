"""Which node is slow, found from groups of nodes: against a network whose speeds are known."""

import itertools

import pytest

from launch.bandwidth import every_pair, rounds, slow_nodes

COUNTS = [2, 3, 4, 5, 7, 8, 64, 100, 1024]


@pytest.mark.parametrize("nodes", COUNTS)
def test_no_node_is_in_two_groups_of_a_round_or_alone_and_rounds_are_few(nodes: int) -> None:
    for groups in rounds(nodes):
        members = list(itertools.chain(*groups))
        assert len(set(members)) == len(members) >= nodes - (nodes % 2)
        assert all(len(group) > 1 for group in groups)
    assert len(rounds(nodes)) <= nodes.bit_length() + 3


@pytest.mark.parametrize("nodes", COUNTS[:6])
def test_every_pair_meets_once(nodes: int) -> None:
    met = [tuple(sorted(pair)) for groups in every_pair(nodes) for pair in groups]
    assert sorted(met) == list(itertools.combinations(range(nodes), 2))


@pytest.mark.parametrize("nodes", [4, 5, 8, 64, 100])
def test_the_slow_node_is_named_and_no_other(nodes: int) -> None:
    for bad in range(0, nodes, 3):
        measured = [(groups, [0.4 if bad in group else 1.0 for group in groups]) for groups in rounds(nodes)]
        assert slow_nodes(measured) == [bad]
    assert slow_nodes([(groups, [1.0 for _ in groups]) for groups in rounds(nodes)]) == []
