import pytest

from data_pipeline.config import DataPipelineConfig, flatten
from data_pipeline.stages import STAGES
from llama_foundation.compose import CONFIGS, compose
from llama_foundation.errors import ConfigError

COMMAND = ["input.paths=[a.jsonl]", "output=out"]
PRESETS = sorted(path.stem for path in (CONFIGS / "pipeline").glob("*.yaml"))


def composed(*overrides):
    return compose("data", DataPipelineConfig, [*COMMAND, *overrides])


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_composes_and_says_its_name(preset):
    config = composed(f"pipeline={preset}")
    assert config.pipeline.name == preset
    assert set(config.pipeline.stages) <= set(STAGES)


def test_every_stage_has_settings():
    pipeline = composed().pipeline
    assert all(hasattr(pipeline, name) for name in STAGES)


def test_each_tokenizer_choice_composes():
    assert composed().tokenizer.train.vocabulary_size == 32_000
    assert composed("tokenizer=sentencepiece_4k").tokenizer.train.vocabulary_size == 4096
    byte_level = composed("tokenizer=bpe_128k", "tokenizer.train.source_weights={web: 0.8, code: 0.2}").tokenizer.train
    assert (byte_level.kind.value, byte_level.vocabulary_size) == ("byte_level", 128_256)
    assert byte_level.source_weights == {"web": 0.8, "code": 0.2}
    with pytest.raises(ConfigError, match="vocabulary_size=511 must be between 512"):
        composed("tokenizer=bpe_128k", "tokenizer.train.vocabulary_size=511")
    assert composed("tokenizer=file", "tokenizer.path=x.model").tokenizer.path == "x.model"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pipeline.stages=[gopher_qualty]", "gopher_qualty.*did you mean gopher_quality"),
        ("pipeline.stages=[c4,c4]", "names c4 twice"),
        ("pipeline.gopher_quality.min_word=3", "pipeline.gopher_quality.min_word"),
        ("pipeline.gopher_repetition.max_top_ngrams=[0.1]", "has 1 numbers; it needs 3"),
        ("pipeline=quickstrat", "did you mean pipeline=quickstart"),
        ("validation.fraction=1", "validation.fraction=1.0 must be"),
        ("workers=-1", "workers=-1 must be at least 0"),
        ("engine=spark", "engine"),
        ("engine.address=head:6379", "is of use to engine=ray only, not to local"),
        ("engine.lease_seconds=0", "engine.lease_seconds=0.0 must be at least 1"),
        ("engine.cpus_per_task=0", "engine.cpus_per_task=0.0 must be above 0"),
        ("engine.tasks_per_process=0", "engine.tasks_per_process=0 must be at least 1"),
        ("tokenizer.train.character_coverage=0.95", "character_coverage=0.95 must be between 0.98 and 1"),
        ("tokenizer.train.temperature=0.5", "tokenizer.train.temperature=0.5 must be at least 1"),
        ("input.paths=[]", "input.paths is empty"),
        ("tokenizer.train=null", "give one of them"),
        ("tokenizer.path=x", "give one of them"),
        ("tokenizer.train.vocabulary_size=10", "vocabulary_size=10 must be between"),
        ("tokenizer.train.source_weights={web: 0.0}", "one of them above 0"),
        ("tokenizer.train.source_weights={web: 1.0, code: -1.0}", "every weight must be"),
        ("tokenizer=file", "tokenizer.path"),
    ],
)
def test_a_bad_setting_is_refused_by_name(override, message):
    with pytest.raises(ConfigError, match=message):
        composed(override)


@pytest.mark.parametrize("missing", ["input.paths", "output"])
def test_a_required_setting_is_named_with_what_to_add(missing):
    with pytest.raises(ConfigError, match=f"{missing} is (not set|empty); (add|give) "):
        compose("data", DataPipelineConfig, [each for each in COMMAND if not each.startswith(missing)])


def test_flatten_gives_every_setting_its_dotted_name():
    flat = flatten(composed())
    assert flat["pipeline.gopher_quality.min_words"] == 20
    assert flat["engine.name"] == "local"
    assert flat["tokenizer.train.vocabulary_size"] == 32_000
