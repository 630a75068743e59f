"""Which node is bad, found from groups of nodes: against a network whose speeds are known."""

import itertools
import math
import random

import pytest

from launch.bandwidth import bad_of_pairs, every_pair, find_bad_nodes, slow_pairs

COUNTS = [2, 3, 4, 5, 7, 8, 64, 100, 1024]


class Network:
    """All-reduce is as fast as its slowest member; every measurement is up to a tenth off."""

    def __init__(self, speeds: dict[int, float]) -> None:
        self.speeds, self.rounds, self.chance = speeds, [], random.Random(0)

    def __call__(self, groups: list[list[int]]) -> list[float]:
        members = list(itertools.chain(*groups))
        assert len(set(members)) == len(members), "a node is in two groups of a round"
        assert all(len(group) > 1 for group in groups)
        self.rounds.append(groups)
        return [min(self.speeds.get(node, 1.0) for node in group) * self.chance.uniform(0.9, 1.0) for group in groups]


@pytest.mark.parametrize("nodes", COUNTS)
def test_healthy_nodes_are_all_measured_in_few_rounds_and_none_is_accused(nodes: int) -> None:
    network = Network({})
    assert find_bad_nodes(nodes, network) == []
    assert set(itertools.chain(*itertools.chain(*network.rounds))) == set(range(nodes))
    assert len(network.rounds) <= math.ceil(math.log2(nodes)) + 2 + nodes % 2


@pytest.mark.parametrize("nodes", COUNTS[:6])
def test_every_pair_meets_once(nodes: int) -> None:
    met = [tuple(sorted(pair)) for groups in every_pair(nodes) for pair in groups]
    assert sorted(met) == list(itertools.combinations(range(nodes), 2))


@pytest.mark.parametrize("speed", [0.4, 0.0])
@pytest.mark.parametrize("nodes", [3, 4, 5, 6, 7, 8, 64, 100])
def test_the_slow_or_failing_node_is_named_and_no_other(nodes: int, speed: float) -> None:
    for bad in range(nodes):
        assert find_bad_nodes(nodes, Network({bad: speed})) == [bad]


@pytest.mark.parametrize("nodes", [2, 3, 4, 8, 9])
def test_a_disturbance_that_passes_accuses_nobody(nodes: int) -> None:
    class Disturbed(Network):
        def __call__(self, groups: list[list[int]]) -> list[float]:
            self.speeds = {1: 0.2} if len(self.rounds) < 3 else {}
            return super().__call__(groups)

    assert find_bad_nodes(nodes, Disturbed({})) == []


@pytest.mark.parametrize("bad", [[], [2]])
def test_a_busy_machine_accuses_nobody_and_hides_nobody(bad: list[int]) -> None:
    class Busy(Network):
        def __call__(self, groups: list[list[int]]) -> list[float]:
            return [value * self.chance.uniform(0.4, 1.0) for value in super().__call__(groups)]

    for seed in range(20):
        network = Busy(dict.fromkeys(bad, 0.2))
        network.chance.seed(seed)
        assert find_bad_nodes(4, network) == bad


@pytest.mark.parametrize("nodes", [4, 5, 6, 8, 32])
def test_a_node_that_reaches_only_the_first_is_named(nodes: int) -> None:
    class Cut(Network):
        def __call__(self, groups: list[list[int]]) -> list[float]:
            cut = [bad in group and set(group) != {0, bad} for group in groups]
            return [0.0 if each else value for each, value in zip(cut, super().__call__(groups), strict=True)]

    for bad in range(1, nodes):
        assert find_bad_nodes(nodes, Cut({})) == [bad]


def test_only_the_suspect_half_is_cut_further() -> None:
    network = Network({37: 0.4})
    find_bad_nodes(64, network)
    search = network.rounds[:7]
    suspects = [next((group for group in groups if 37 in group), []) for groups in search]
    assert [len(group) for group in suspects[:6]] == [64, 32, 16, 8, 4, 2]
    measured = [sum(map(len, groups)) for groups in search[2:7]]
    assert measured == [48, 24, 12, 6, 6]  # both halves of what is suspect, and a proven group


@pytest.mark.parametrize("nodes", [6, 8, 13])
def test_two_bad_nodes_are_both_named_wherever_they_are(nodes: int) -> None:
    for pair in itertools.combinations(range(nodes), 2):
        for speeds in ((0.4, 0.4), (0.5, 0.1), (0.4, 0.0), (0.0, 0.0)):
            assert find_bad_nodes(nodes, Network(dict(zip(pair, speeds, strict=True)))) == list(pair), (pair, speeds)


def test_a_slow_link_between_two_good_nodes_accuses_neither() -> None:
    measured = [(groups, [0.2 if group in ([0, 3], [3, 0]) else 1.0 for group in groups]) for groups in every_pair(4)]
    assert bad_of_pairs(measured) == []
    assert [pair for pair, is_slow in slow_pairs(measured).items() if is_slow] == [(0, 3)]
