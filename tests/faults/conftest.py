"""The tiny run of the other tests, to be broken."""

from tests.llama_train.conftest import launch, tiny, tiny_shards

__all__ = ["launch", "tiny", "tiny_shards"]
