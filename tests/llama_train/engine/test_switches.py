"""Every switch of the engine, alone and all together, gives the gradients of the model as it is written, in float64."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from llama_train.config import ActivationCheckpointing, EngineConfig, ModelConfig, Precision
from llama_train.model.initialize import initialize
from llama_train.model.llama import Llama
from llama_train.parallel.apply import parallelize
from llama_train.parallel.layout import Layout, make_groups
from llama_train.parallel.shard import apply_fsdp

SHAPE = {"layers": 3, "heads": 4, "kv_heads": 2, "ffn_size": 48, "context": 64}
IDS = torch.tensor([[0] * 7 + [1] * 25, [0] * 32])
SWITCHES = {
    "selective": {"activation_checkpointing": ActivationCheckpointing.selective},
    "every_n": {"activation_checkpointing": ActivationCheckpointing.every_n},
    "loss_chunk": {"loss_chunk": 10},
    "all": {"activation_checkpointing": ActivationCheckpointing.selective, "loss_chunk": 10},
}


@pytest.fixture(scope="module", autouse=True)
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def gradients(tied: bool, switches: dict | None, sharded: bool) -> list[torch.Tensor]:
    config = ModelConfig("t", 101, 32, tied_embeddings=tied, **SHAPE)
    model = Llama(config).double()
    initialize(model, config, seed=0)
    if switches is not None:
        settings = EngineConfig(precision=Precision.fp64, **{"loss_chunk": 0, **switches})
        layout = Layout(1, 1, 0, 2)
        parallelize(model, settings, layout, make_groups(layout, torch.device("cpu"), 60.0, tied), "cpu")
    if sharded:
        apply_fsdp(model, init_device_mesh("cpu", (1,)), Precision.fp64, reshard_after_forward=True)
    tokens = torch.randint(101, (2, 32), generator=torch.Generator().manual_seed(1))
    for _ in range(2):  # gradients of two micro-batches add up
        loss, count = model(tokens, tokens, IDS, torch.arange(32).expand(2, -1))
        (loss / count).backward()
    found = [parameter.grad for parameter in model.parameters()]
    return [loss.detach(), *(g.full_tensor() if isinstance(g, DTensor) else g for g in found)]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("sharded", [False, True], ids=["plain", "FSDP2"])
@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_changes_no_gradient(name, sharded, tied):
    expected = gradients(tied, None, sharded=False)
    for one, other in zip(gradients(tied, SWITCHES[name], sharded), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
