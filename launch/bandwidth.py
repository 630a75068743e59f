"""Which nodes have to be measured together, and which of them is slow: the arithmetic behind `llama-launch doctor`."""

import statistics
from collections.abc import Sequence

SLOW = 0.7
"""A group slower than this part of the median of its round's groups is suspect: assumed, from what rounds vary by."""

Round = list[list[int]]
"""Groups of nodes that are measured at the same time."""


def rounds(nodes: int) -> list[Round]:
    """Return about log2(nodes) + 2 rounds: all nodes, halves, quarters, ..., and three rounds of pairs.

    With three rounds every node has at least two partners, so that of a slow pair the slow node can be told.
    """
    if nodes < 2:
        return []
    found: list[Round] = []
    size = nodes
    while size > 2:
        found.append(_groups(list(range(nodes)), size))
        size = (size + 1) // 2
    return found + every_pair(nodes, 3)


def every_pair(nodes: int, most: int | None = None) -> list[Round]:
    """Return rounds in which every two nodes meet once (the circle method of round-robin tournaments), or the first."""
    circle: list[int | None] = [*range(nodes)] + ([None] if nodes % 2 else [])
    found = []
    for _ in range(min(len(circle) - 1, most or nodes)):
        pairs = zip(circle[: len(circle) // 2], reversed(circle[len(circle) // 2 :]), strict=True)
        found.append([[one, other] for one, other in pairs if one is not None and other is not None])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return found


def slow_nodes(measured: Sequence[tuple[Round, Sequence[float]]]) -> list[int]:
    """Return the nodes all of whose pairs are slow.

    Args:
        measured: of every round the groups and their bandwidths, in GB/s; 0 for one that failed.
    """
    slow: dict[int, list[bool]] = {}
    pairs = [
        (group, value)
        for groups, values in measured
        for group, value in zip(groups, values, strict=True)
        if len(group) == 2
    ]
    if len(pairs) < 2:  # nothing to compare with
        return []
    usual = statistics.median_high(value for _, value in pairs)
    for group, value in pairs:
        for node in group:
            slow.setdefault(node, []).append(value < SLOW * usual)
    return sorted(node for node, each in slow.items() if all(each))


def _groups(nodes: list[int], size: int) -> Round:
    """Cut into groups of `size`; one that would be left alone joins the group before."""
    groups = [nodes[start : start + size] for start in range(0, len(nodes), size)]
    if len(groups) > 1 and len(groups[-1]) == 1:
        groups[-2] += groups.pop()
    return groups
