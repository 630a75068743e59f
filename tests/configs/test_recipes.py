"""Every recipe composes, and what it composes to are the published numbers."""

import re
from itertools import pairwise

import pytest

from llama_foundation.compose import CONFIGS, compose
from llama_foundation.errors import ConfigError
from llama_train.config import ScheduleName, TrainConfig
from llama_train.optimizer.schedule import learning_rate

# Tokens, sequence length and batch in tokens at the start, peak, last learning rate, warm-up steps. Sources: Llama 1,
# table 2 and section 2.3; Llama 2, table 1 and section 2.2; The Llama 3 Herd of Models, table 3 and section 3.4.1;
# Llama 3's model card; Code Llama, "Training details". 4M tokens are 2^22.
M4 = 1 << 22
PUBLISHED = {
    "llama1_7b": (1.0e12, 2048, M4, 3e-4, 3e-5, 2000),
    "llama1_13b": (1.0e12, 2048, M4, 3e-4, 3e-5, 2000),
    "llama1_33b": (1.4e12, 2048, M4, 1.5e-4, 1.5e-5, 2000),
    "llama1_65b": (1.4e12, 2048, M4, 1.5e-4, 1.5e-5, 2000),
    "llama2_7b": (2.0e12, 4096, M4, 3e-4, 3e-5, 2000),
    "llama2_13b": (2.0e12, 4096, M4, 3e-4, 3e-5, 2000),
    "llama2_34b": (2.0e12, 4096, M4, 1.5e-4, 1.5e-5, 2000),
    "llama2_70b": (2.0e12, 4096, M4, 1.5e-4, 1.5e-5, 2000),
    "llama3_8b": (15e12, 8192, M4, 3e-4, 3e-6, 8000),
    "llama3_70b": (15e12, 8192, M4, 1.5e-4, 1.5e-6, 8000),
    "llama3.1_405b": (15.6e12, 4096, M4, 8e-5, 8e-7, 8000),
    "codellama_7b": (500e9, 4096, M4, 3e-4, 1e-5, 1000),
    "codellama_13b": (500e9, 4096, M4, 3e-4, 1e-5, 1000),
    "codellama_34b": (500e9, 4096, M4, 1.5e-4, 5e-6, 1000),
}
MIXTURES = {
    "llama1": {"CommonCrawl": 67, "C4": 15, "Github": 4.5, "Wikipedia": 4.5, "Books": 4.5, "ArXiv": 2.5}
    | {"StackExchange": 2},
    "llama2": {},
    "llama3": {},
    "llama3.1": {"general_knowledge": 50, "mathematics_and_reasoning": 25, "code": 17, "multilingual": 8},
    "codellama": {"code": 85, "natural_language_related_to_code": 8, "natural_language": 7},
}


def load(name: str, *overrides: str) -> TrainConfig:
    return compose("train", TrainConfig, [f"experiment={name}", "data.shards=x", *overrides])


def token_spans(config: TrainConfig) -> list[int]:
    """Tokens of each segment, the part before the first one included."""
    batch, length = config.data.batch_size, config.data.sequence_length
    starts = [0, *(segment.from_step for segment in config.data.segments), config.steps]
    spans = []
    for segment, (start, end) in zip([None, *config.data.segments], pairwise(starts), strict=True):
        batch = (segment and segment.batch_size) or batch
        length = (segment and segment.sequence_length) or length
        spans.append((end - start) * batch * length)
    return spans


def test_every_recipe_is_checked_here():
    assert {path.stem for path in (CONFIGS / "experiment").glob("*.yaml")} - {"quickstart"} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_is_the_published_one(name):
    tokens, length, batch_tokens, peak, last, warmup = PUBLISHED[name]
    config = load(name)
    assert (config.name, config.model.name) == (name, name)
    assert config.data.sequence_length == length
    assert config.data.batch_size * length == batch_tokens
    assert abs(sum(token_spans(config)) - tokens) <= 4 * M4 / 2  # half of the largest batch
    assert config.data.sources == MIXTURES[name.split("_")[0]]
    assert sum(config.data.sources.values()) in (0, 100)
    assert config.data.document_masks == name.startswith("llama3")
    assert config.schedule.name is ScheduleName.cosine

    def rate(step):
        return learning_rate(step, config.optimizer.learning_rate, config.schedule, config.steps)

    end = config.schedule.total_steps or config.steps
    assert rate(0) == pytest.approx(peak / warmup)
    assert rate(warmup - 2) < rate(warmup - 1) == peak > rate(warmup)
    assert rate(end - 1) == pytest.approx(last, rel=1e-12)


def test_batch_of_the_405b_grows_where_the_paper_says():
    config = load("llama3.1_405b")
    first, second, third = token_spans(config)
    assert first == pytest.approx(252e6, abs=M4 / 2)
    assert first + second == pytest.approx(2.87e12, abs=M4)
    assert first + second + third == pytest.approx(15.6e12, abs=2 * M4)
    assert config.data.longest_sequence() == config.model.context == 8192
    assert config.model.rope_scaling is None
    assert config.schedule.total_steps == 1_200_000 > config.steps


@pytest.mark.parametrize("name", ["llama1_7b", "llama2_70b", "codellama_34b"])
def test_optimizer_is_the_papers(name):
    optimizer = load(name).optimizer
    assert (optimizer.beta1, optimizer.beta2) == (0.9, 0.95)
    assert optimizer.epsilon == (1e-8 if name.startswith("llama1") else 1e-5)
    assert (optimizer.weight_decay, optimizer.max_grad_norm) == (0.1, 1.0)


def test_code_training_starts_from_llama_2():
    # A name and not ???: a missing value would fall back to null, and train from nothing without a word.
    assert load("codellama_13b").checkpoint.init_from == "weights/llama2_13b"


def test_code_training_has_the_rotary_base_and_context_of_llama_2():
    config = load("codellama_7b")
    assert (config.model.rope_theta, config.model.context, config.model.vocab_size) == (1e4, 4096, 32016)


def test_a_recipe_asks_for_shards():
    with pytest.raises(ConfigError, match=r"data\.shards"):
        compose("train", TrainConfig, ["experiment=llama2_7b"])


def test_a_recipe_takes_overrides():
    config = load("llama2_7b", "model=tiny", "data.sequence_length=64", "data.batch_size=8", "steps=3000")
    assert (config.model.name, config.data.sequence_length, config.optimizer.learning_rate) == ("tiny", 64, 3e-4)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_setting_of_a_recipe_says_where_it_comes_from(name):
    lines = (CONFIGS / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    source = re.compile(r"#.*(section \d|table \d|model card|assumed|Training details|The Code Llama|Long context)")
    values = [line for line in lines if re.match(r" {2}\w+: \S", line)]
    assert len(values) > 10
    assert [line for line in values if not source.search(line)] == []
