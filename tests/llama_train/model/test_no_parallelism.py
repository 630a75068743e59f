"""The maths is written down without a word of how it is spread out."""

import re
from pathlib import Path

from llama_train.model import llama

WORDS = (
    "parallel|pipeline|distributed|shard|rank|world|mesh|replica|fsdp|dtensor|collective|gather|scatter|reduce|"
    "all_to_all|stage|micro|schedule"
)


def test_the_model_says_nothing_of_parallelism() -> None:
    text = Path(llama.__file__).read_text().lower()
    found = re.findall(rf"\w*(?:{WORDS})\w*", text)
    assert found == []
