"""Whether what several ranks hold is the same: weights and moments that silently changed on one of them.

Copies exist under HSDP (`layout.data_replicate`) and of weights that tensor ranks hold whole. Where every element is
held once there is nothing to compare.
"""

from collections import Counter
from collections.abc import Iterable

import numpy
import torch
import xxhash

from llama_foundation.errors import RunError
from llama_train.checkpoint.collective import Group, broadcast_bytes, gather_bytes, gather_everywhere, group_rank
from llama_train.engine.engine import Chunk


def compare_replicas(step: int, chunks: Iterable[Chunk], group: Group) -> None:
    """Compare all rectangles that more than one rank holds, by 64-bit hashes; every rank calls it.

    Rank 0 receives 16 bytes for every chunk of every rank.

    Raises:
        RunError: on every rank; names the tensor and the ranks.
    """
    held = list(_hashes(chunks))
    mine = numpy.array([hashes for _, hashes in held], dtype=numpy.uint64).reshape(-1, 2)
    parts = [numpy.frombuffer(part, dtype=numpy.uint64).reshape(-1, 2) for part in gather_bytes(mine.tobytes(), group)]
    found = _difference(parts) if group_rank(group) == 0 else None
    answer = broadcast_bytes(b"" if found is None else b"%d" % found[0], group)
    if not answer:
        return
    names = [name for name, (key, _) in held if key == int(answer)]
    name = next(filter(None, gather_everywhere(names[0] if names else None, group)))
    who = broadcast_bytes(found[1].encode() if found else b"", group).decode()
    raise RunError(
        f"after step {step}: {name} is not the same on all ranks that hold it: {who}. Memory or a processor changed it "
        "silently: take the machine out, and start again from the last checkpoint"
    )


def _hashes(chunks: Iterable[Chunk]) -> Iterable[tuple[str, tuple[int, int]]]:
    """Yield name, and hashes of which rectangle it is and of what is in it."""
    for chunk in chunks:
        tensor = chunk.tensor.detach().contiguous().cpu()
        place = f"{chunk.name} {chunk.offsets} {tuple(tensor.shape)}"
        data = tensor.reshape(-1).view(torch.uint8).numpy()
        yield chunk.name, (xxhash.xxh3_64_intdigest(place.encode()), xxhash.xxh3_64_intdigest(data))


def _difference(parts: list[numpy.ndarray]) -> tuple[int, str] | None:
    """Return the first rectangle that is not the same everywhere, and who is to blame; None where all is well."""
    holders: dict[int, list[tuple[int, int]]] = {}
    for rank, part in enumerate(parts):
        for place, content in part.tolist():
            holders.setdefault(place, []).append((rank, content))
    for place, held in holders.items():
        counts = Counter(content for _, content in held).most_common()
        if len(counts) == 1:
            continue
        if counts[0][1] > counts[1][1]:
            odd = [str(rank) for rank, content in held if content != counts[0][0]]
            return place, f"rank {', '.join(odd)} differs from the other {counts[0][1]}"
        return place, f"ranks {', '.join(str(rank) for rank, _ in held)} disagree, and no majority says who is right"
    return None
