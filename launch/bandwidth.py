"""Which nodes are measured together, and which of them is bad: the search behind `llama-launch doctor`."""

import statistics
from collections.abc import Callable, Sequence

SLOW = 0.7
"""A group slower than this part of what is usual in its round is suspect: assumed, from what rounds vary by."""

FEW = 12
"""Up to so many groups of a round, the fastest one is what is usual; of more it is their median."""

CONFIRMATIONS = 5
"""How often pairs are measured again before a node is called bad: assumed, from what a busy machine does to them."""

Round = list[list[int]]
"""Groups of nodes that are measured at the same time."""

Measure = Callable[[Round], list[float]]
"""Returns the bandwidth of every group in GB/s; 0 where it failed."""


def find_bad_nodes(count: int, measure: Measure) -> list[int]:
    """Return the nodes of `count` whose network is slow or fails, in about log2(count) + 2 rounds.

    All nodes together, then halves, quarters and so on. As soon as groups of a round differ, the fast ones are proven:
    a bad node would have slowed them. From then on only the others are halved, beside a proven group of the same size
    to compare with; a node that is left alone is measured with a proven one, which says whether it is bad. Where no
    round shows a difference, three or four rounds of pairs do: every node meets three others. What was found is left
    out, and the rest searched again, for the slowest may hide one that is only slow.
    """
    bad: list[int] = []
    while len(rest := [node for node in range(count) if node not in bad]) > 1:
        found = _search(rest, measure)
        if not found:
            break
        bad += found
    return sorted(bad)


def _search(nodes: list[int], measure: Measure) -> list[int]:
    groups = [nodes]
    if len(nodes) > 2:  # two are a pair, which comes below
        measure(groups)
    while max(map(len, groups)) > 4:
        groups = _halves(groups)
        values = measure(groups)
        suspects = [group for group, is_slow in zip(groups, _slow(values), strict=True) if is_slow]
        proven = [node for group in groups if group not in suspects for node in group]
        if suspects and proven:
            usual = statistics.median_high(
                value for group, value in zip(groups, values, strict=True) if group not in suspects
            )
            if found := _bisect(suspects, proven, usual, measure):
                return found
            break  # a disturbance, or a node that reaches some and not others: pairs tell
    pairs = [
        [[nodes[one], nodes[other]] for one, other in groups] for groups in every_pair(len(nodes), 3 + len(nodes) % 2)
    ]
    measured = [(groups, measure(groups)) for groups in pairs]
    for _ in range(CONFIRMATIONS):  # a disturbance passes, a bad node stays
        if not bad_of_pairs(measured):
            break
        measured += [(groups, measure(groups)) for groups in pairs]
    return bad_of_pairs(measured)


def _bisect(suspects: Round, proven: list[int], usual: float, measure: Measure) -> list[int]:
    """Halve groups that are known to hold a bad node until it is alone.

    Args:
        proven: nodes that are not bad.
        usual: the bandwidth of a proven group, until one is measured beside the suspects.
    """
    bad: list[int] = []
    met: dict[int, list[tuple[int, bool]]] = {}  # a node that was left alone → proven partners, and if that was slow
    while suspects:
        halves = [*_halves([group for group in suspects if len(group) > 1]), *([node] for node in met)]
        suspects = []
        while halves:
            free, groups = list(proven), []
            while halves and (len(halves[0]) > 1 or free):
                half = halves.pop(0)
                if len(half) == 1:
                    before = [partner for partner, _ in met.get(half[0], [])]
                    partner = next((node for node in free if node not in before), free[0])
                    free.remove(partner)
                    half = [half[0], partner]
                groups.append(half)
            beside = free[: max(map(len, groups))]
            values = measure([*groups, beside] if len(beside) > 1 else groups)
            if len(beside) > 1 and values[-1] > 0:
                usual = values[-1]
            for group, value in zip(groups, values, strict=False):
                node, partner = group[0], group[-1]
                if partner not in proven:
                    suspects += [group] if value < SLOW * usual else []
                    continue
                # Slow with one partner is not enough, because one that is a little slow itself may count as proven;
                # nor does one that is fast clear it, because a node may reach some and not others. Two of three do.
                met.setdefault(node, []).append((partner, value < SLOW * usual))
                slow = sum(is_slow for _, is_slow in met[node])
                fast = len(met[node]) - slow
                if slow == 2:
                    bad.append(node)
                if slow == 2 or fast > slow:
                    del met[node]
        suspects += [[node] for node in met]
    return bad


def every_pair(nodes: int, most: int | None = None) -> list[Round]:
    """Return rounds in which every two nodes meet once (the circle method of round-robin tournaments), or the first."""
    circle: list[int | None] = [*range(nodes)] + ([None] if nodes % 2 else [])
    found = []
    for _ in range(min(len(circle) - 1, most or nodes)):
        pairs = zip(circle[: len(circle) // 2], reversed(circle[len(circle) // 2 :]), strict=True)
        found.append([[one, other] for one, other in pairs if one is not None and other is not None])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return found


def slow_pairs(measured: Sequence[tuple[Round, Sequence[float]]]) -> dict[tuple[int, int], bool]:
    """Return for every measured pair whether it is slow, beside what is usual; of several measurements the best counts.

    Args:
        measured: of every round the groups and their bandwidths, in GB/s; 0 for one that failed.
    """
    pairs: dict[tuple[int, int], float] = {}
    for groups, values in measured:
        for group, value in zip(groups, values, strict=True):
            if len(group) == 2:
                pair = min(group), max(group)
                pairs[pair] = max(value, pairs.get(pair, 0.0))
    return dict(zip(pairs, _slow(list(pairs.values())), strict=True))


def bad_of_pairs(measured: Sequence[tuple[Round, Sequence[float]]]) -> list[int]:
    """Return the nodes most of whose pairs are slow; the worst first, because its partners' pairs are slow through it.

    A node need not be slow with all: it may reach some and not others.
    """
    pairs = slow_pairs(measured)
    bad: list[int] = []
    while True:
        left = {pair: is_slow for pair, is_slow in pairs.items() if not {*bad}.intersection(pair)}
        of_node: dict[int, list[bool]] = {}
        for pair, is_slow in left.items():
            for node in pair:
                of_node.setdefault(node, []).append(is_slow)
        part = {node: statistics.fmean(each) for node, each in of_node.items()}
        worst = max(part.values(), default=0.0)
        if worst <= 0.5:
            return sorted(bad)
        bad += [node for node, value in part.items() if value == worst]


def _slow(values: Sequence[float]) -> list[bool]:
    """Say of each bandwidth of a round whether it is suspect; one that failed always is."""
    working = [value for value in values if value > 0]
    few = len(working) <= FEW
    usual = (max(working) if few else statistics.median_high(working)) if working else 0.0
    return [value <= 0 or value < SLOW * usual for value in values]


def _halves(groups: Round) -> Round:
    """Cut every group in two, the first half the larger one."""
    cut = [((len(group) + 1) // 2, group) for group in groups]
    return [half for middle, group in cut for half in (group[:middle], group[middle:]) if half]
