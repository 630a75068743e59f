"""Overlap of messages and multiplications is refused without CUDA; what the compiler would fuse is seen anywhere."""

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from llama_foundation.errors import ConfigError
from llama_train.config import EngineConfig, ModelConfig
from llama_train.model.llama import Llama, rotation
from llama_train.parallel.layout import Layout
from llama_train.parallel.overlap import check_async_tensor_parallel
from llama_train.parallel.tensor import apply_tensor_parallel


def test_without_cuda_it_is_refused_by_name() -> None:
    asked = EngineConfig(compile=True, async_tensor_parallel=True)
    with pytest.raises(ConfigError, match=r"engine\.async_tensor_parallel=true needs CUDA devices"):
        check_async_tensor_parallel(asked, "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"engine\.async_tensor_parallel=true needs CUDA devices"):
            check_async_tensor_parallel(asked, "auto")
    check_async_tensor_parallel(EngineConfig(), "cpu")


@pytest.fixture
def one_of_four() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("fake", rank=1, world_size=4, store=FakeStore())
    yield dist.group.WORLD
    dist.destroy_process_group()
    torch._dynamo.reset()


def test_the_compiler_would_fuse_every_message_of_a_block(
    one_of_four: dist.ProcessGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The fused operations run on GPUs only; torch looks for what it can fuse on any graph.
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.fx_passes.micro_pipeline_tp import micro_pipeline_tp_pass
    from torch._inductor.fx_passes.post_grad import view_to_reshape
    from torch.distributed import _symmetric_memory

    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(_symmetric_memory, "is_symm_mem_enabled_for_group", lambda name: True)
    config = ModelConfig("m", 128, 256, layers=1, heads=8, kv_heads=8, ffn_size=512, context=64)
    with torch.device("meta"):
        model = Llama(config).to(torch.bfloat16)
    apply_tensor_parallel(model, Layout(1, 1, 1, 1, tensor=4), one_of_four)
    (block,) = model.to_empty(device="cpu").blocks()
    messages = []

    def look(graph_module: torch.fx.GraphModule, inputs: Any) -> Any:
        ours = copy.deepcopy(graph_module)
        view_to_reshape(ours)
        micro_pipeline_tp_pass(ours.graph)
        names = [str(node.target).removesuffix(".default").rpartition(".")[2] for node in ours.graph.nodes]
        messages.append(Counter(n for n in names if n.startswith(("fused", "all_gather", "reduce_scatter"))))
        return make_boxed_func(graph_module.forward)

    backend = aot_autograd(fw_compiler=look, bw_compiler=look, decompositions=select_decomp_table())
    hidden = torch.randn(2, 16, 256, dtype=torch.bfloat16, requires_grad=True)
    angles = rotation(torch.arange(64)[None], config, torch.float32)
    torch.compile(block, backend=backend)(hidden, *angles, None).sum().backward()
    forward, backward = messages
    assert forward == {"fused_all_gather_matmul": 2, "fused_matmul_reduce_scatter": 2}
    # Gradients of a sublayer's input are sums over its matrices: torch sends those as they are.
    assert backward == {"fused_all_gather_matmul": 2, "reduce_scatter_tensor": 2}
