"""The tiny run of the other tests, to be broken."""

from hypothesis import settings

from tests.llama_train.conftest import launch, tiny, tiny_shards

__all__ = ["launch", "tiny", "tiny_shards"]

settings.register_profile("long", max_examples=4000)  # 1,000 of each test here; see fuzzing.py
