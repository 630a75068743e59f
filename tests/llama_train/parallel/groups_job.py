"""One rank of a mesh that stays away from every group it is in, or waits for those who do."""

import time

import torch
import torch.distributed as dist

from llama_train.parallel.layout import Layout, make_groups, make_request_group

SECONDS = 1.0


def wait_for_rank_0(rank: int, sizes: dict[str, int]) -> dict[str, float]:
    """Return for every group of this rank with rank 0 in it how many seconds it waited for rank 0, which never came."""
    layout = Layout(**{"data_replicate": 1, "data_shard": 1, **sizes}, rank=rank, micro_batch_size=1)
    groups = make_groups(layout, torch.device("cpu"), SECONDS, tied_embeddings=True)
    requests = make_request_group(layout, SECONDS)
    mesh = groups.shard_mesh
    found = {name: getattr(groups, name) for name in ("pipeline", "context", "tensor", "ends")}
    found |= {name: mesh.get_group(name) for name in mesh.mesh_dim_names or ()} | {"requests": requests}
    waited = {}
    for name, group in found.items():
        if rank == 0 or group is None or 0 not in dist.get_process_group_ranks(group):
            continue
        began = time.monotonic()
        try:
            dist.all_reduce(torch.ones(1), group=group)
        except RuntimeError:
            waited[name] = time.monotonic() - began
    return waited
