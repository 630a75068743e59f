"""Overlap of messages and multiplications is refused where there is none."""

import pytest
import torch

from llama_foundation.errors import ConfigError
from llama_train.config import EngineConfig
from llama_train.parallel.overlap import check_async_tensor_parallel


def test_without_cuda_it_is_refused_by_name() -> None:
    asked = EngineConfig(compile=True, async_tensor_parallel=True)
    with pytest.raises(ConfigError, match=r"engine\.async_tensor_parallel=true needs CUDA devices"):
        check_async_tensor_parallel(asked, "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"engine\.async_tensor_parallel=true needs CUDA devices"):
            check_async_tensor_parallel(asked, "auto")
    check_async_tensor_parallel(EngineConfig(), "cpu")
