"""engine=deepspeed: what is refused before anything starts, and what DeepSpeed is given."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from llama_foundation import compose
from llama_foundation.errors import ConfigError
from llama_train.config import TrainConfig
from llama_train.engine.build import check_engine, describe_engine
from llama_train.engine.deepspeed.checks import TESTED_VERSION, check_nvme
from llama_train.engine.deepspeed.config_file import IGNORED, PASSED
from llama_train.engine.deepspeed.settings import resolve_settings


def configured(*overrides: str) -> TrainConfig:
    base = ["model=tiny", "steps=9", "data.shards=x", "data.sequence_length=32", "data.batch_size=8"]
    return compose.compose("train", TrainConfig, [*base, "optimizer.learning_rate=1e-3", *overrides])


def deepspeed(*overrides: str) -> TrainConfig:
    return configured("engine=deepspeed", "engine.zero_stage=2", *overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["engine.zero_stage=0"], r"engine.zero_stage=0 must be 1, 2 or 3 .*bf16.*engine=native"),
        (["engine.zero_stage=4"], r"engine.zero_stage=4 must be 1, 2 or 3"),
        (["engine.zero_stage=null"], r"engine.zero_stage=null must be 1, 2 or 3"),
        (["layout.pipeline=2"], r"layout.pipeline=2 .*use layout.pipeline=1, or engine=native"),
        (["layout.tensor=2"], r"layout.tensor=2 .*DTensor.*use layout.tensor=1, or engine=native"),
        (["layout.context=2"], r"layout.context=2 .*Ulysses.*use layout.context=1, or engine=native"),
        (["layout.data_replicate=2"], r"layout.data_replicate=2 .*HSDP.*engine=native"),
        (["engine.precision=fp64"], r"engine.precision=fp64 .*no float64; use engine.precision=fp32"),
        (["engine.float8=rowwise", "engine.precision=bf16"], r"engine.float8=rowwise .*use engine.float8=none"),
        (["engine.offload=true"], r"engine.offload=True .*engine.offload_optimizer=cpu"),
        (["engine.reshard_after_forward=never"], r"engine.reshard_after_forward=never .*ZeRO-3"),
        (["engine.reduce_gradients=once"], r"engine.reduce_gradients=once .*engine.zero_stage"),
        (
            ["engine.compile=true", "engine.zero_stage=3"],
            r"engine.compile=true .*zero_stage=3.*use engine.zero_stage=1",
        ),
        (["engine.activation_checkpointing=selective", "engine.zero_stage=3"], r"=selective .*use full or every_n"),
        (["engine.offload_parameters=cpu"], r"engine.offload_parameters=cpu needs engine.zero_stage=3, not 2"),
        (["engine.offload_optimizer=nvme"], r"engine.offload_optimizer=nvme needs engine.zero_stage=3, not 2"),
    ],
)
def test_what_deepspeed_cannot_do_is_refused_with_the_alternative(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_engine(deepspeed(*overrides), 2)


def test_deepspeeds_settings_are_refused_under_the_native_engine() -> None:
    for override in ("engine.zero_stage=3", "engine.offload_optimizer=cpu", "engine.config_file=ds.json"):
        with pytest.raises(ConfigError, match=override + ".*is DeepSpeed's.*use engine=deepspeed"):
            check_engine(configured(override), 2)
    assert check_engine(configured(), 2) == {}


def test_without_deepspeed_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ConfigError, match=f"pip install deepspeed=={TESTED_VERSION}"):
        check_engine(deepspeed(), 2)


def test_another_version_is_warned_of_with_both_versions(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "0.20.1")
    check_engine(deepspeed(), 2)
    assert "0.20.1" in caplog.text and TESTED_VERSION in caplog.text
    caplog.clear()
    monkeypatch.setattr(metadata, "version", lambda name: TESTED_VERSION)
    check_engine(deepspeed(), 2)
    assert not caplog.text


def test_the_pinned_extra_is_the_version_that_was_tested() -> None:
    extras = metadata.metadata("llama-train").get_all("Requires-Dist") or []
    pinned = [each for each in extras if each.startswith("deepspeed")]
    assert pinned and all(f"=={TESTED_VERSION}" in each for each in pinned)


def test_nvme_is_refused_without_a_path_and_without_libaio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = deepspeed("engine.zero_stage=3", "engine.offload_optimizer=nvme").engine
    with pytest.raises(ConfigError, match=r"engine.offload_optimizer=nvme needs engine.nvme_path=DIR"):
        check_nvme(engine)
    engine.nvme_path = "/nowhere"
    with pytest.raises(ConfigError, match=r"engine.nvme_path=/nowhere is no directory that can be written to"):
        check_nvme(engine)
    engine.nvme_path = str(tmp_path)
    from deepspeed.ops.op_builder import AsyncIOBuilder

    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self, verbose=False: False)
    with pytest.raises(ConfigError, match=r"needs libaio.*engine.offload_optimizer=cpu"):
        check_nvme(engine)


def test_nothing_of_deepspeed_is_imported_unless_chosen() -> None:
    code = (
        "import sys; from llama_train.engine import build; import llama_train.train, llama_train.engine.native; "
        "from llama_train.engine.deepspeed import checks, settings; print('deepspeed' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"


def with_file(tmp_path: Path, content: Any, *overrides: str) -> TrainConfig:
    path = tmp_path / "ds_config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return deepspeed(f"engine.config_file={path}", *overrides)


def test_a_usual_ds_config_is_taken_over(tmp_path: Path) -> None:
    usual = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False, "loss_scale": 0, "initial_scale_power": 16},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-5, "weight_decay": 0.1}},
        "zero_optimization": {
            "stage": 2,
            "overlap_comm": True,
            "reduce_bucket_size": 1000,
            "allgather_bucket_size": "auto",
            "round_robin_gradients": False,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "flops_profiler": {"enabled": False, "detailed": True},
        "wall_clock_breakdown": False,
    }
    settings = resolve_settings(with_file(tmp_path, usual, "layout.micro_batch_size=2"), 2)
    zero = settings["zero_optimization"]
    assert (zero["overlap_comm"], zero["reduce_bucket_size"], settings["wall_clock_breakdown"]) == (True, 1000, False)
    assert settings["train_batch_size"] == 8 and settings["gradient_accumulation_steps"] == 2
    assert zero["allgather_bucket_size"] == 100_080  # "auto" is ours
    assert "stage3_gather_16bit_weights_on_model_save" not in zero and "optimizer" not in settings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"zero_optimization": {"stage": 3}}, r"zero_optimization.stage=3, but engine.zero_stage says 2"),
        ({"train_batch_size": 64}, r"train_batch_size=64, but data.batch_size says 8"),
        ({"gradient_accumulation_steps": 3}, r"gradient_accumulation_steps=3, but .*says 4"),
        ({"gradient_clipping": 0.3}, r"gradient_clipping=0.3, but optimizer.max_grad_norm says 1.0"),
        ({"bf16": {"enabled": True}}, r"bf16.enabled=true, but engine.precision says false"),
        ({"fp16": {"enabled": True}}, r"fp16.enabled=true, but engine.precision says false"),
        ({"optimizer": {"type": "Lamb"}}, r'optimizer.type="Lamb", but optimizer says "AdamW"'),
        ({"optimizer": {"params": {"lr": 1}}}, r"optimizer.params.lr=1, but optimizer.learning_rate says 0.001"),
        ({"communication_data_type": "bf16"}, r'communication_data_type="bf16", but engine=deepspeed says "fp32"'),
        ({"scheduler": {"type": "WarmupLR"}}, r"scheduler: set schedule"),
        ({"activation_checkpointing": {"partition_activations": True}}, r"set engine.activation_checkpointing"),
        ({"sequence_parallel_size": 2}, r"sequence_parallel_size: not supported; use engine=native"),
        ({"zero_optimization": {"cpu_offload": True}}, r"cpu_offload: set engine.offload_optimizer=cpu"),
        ({"zero_optimization": {"overlap_com": True}}, r"overlap_com is not .*did you mean .*overlap_comm\?"),
        ({"zero_optimisation": {"stage": 2}}, r"zero_optimisation.stage is not .*did you mean zero_optimization.stage"),
        ({"qwertz": 1}, r"qwertz is not a key that this engine knows; take it out"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            r'device="cpu", but engine.offload_optimizer',
        ),
        (
            {"zero_optimization": {"offload_param": {"pin_memory": True}}},
            r"pin_memory is set, but engine.offload_param",
        ),
        ({"zero_optimization": {"overlap_comm": "yes"}}, r'overlap_comm="yes" must be true or false'),
        ({"zero_optimization": {"sub_group_size": "1e9"}}, r'sub_group_size="1e9" must be a whole number, 0 or more'),
        ({"zero_optimization": {"reduce_bucket_size": True}}, r"reduce_bucket_size=true must be a whole number"),
        ('{"steps_per_print": 1, "steps_per_print": 2}', r"steps_per_print appears twice"),
        ("{", r"is no JSON"),
        ("[]", r"holds no JSON object"),
    ],
)
def test_a_ds_config_that_contradicts_or_is_unknown_is_refused_by_name(
    tmp_path: Path, content: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_settings(with_file(tmp_path, content), 2)


def test_a_missing_ds_config_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"engine.config_file=/nowhere/x.json: cannot be read: No such file"):
        resolve_settings(deepspeed("engine.config_file=/nowhere/x.json"), 2)


def test_every_key_that_is_passed_on_is_known_to_deepspeed_with_its_type() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig as Optimizer
    from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadParamConfig as Parameters

    known: dict[str, Any] = {}
    for section, model in (
        ("", DeepSpeedZeroConfig),
        ("offload_optimizer.", Optimizer),
        ("offload_param.", Parameters),
    ):
        for name, field in model.model_fields.items():
            known |= {f"zero_optimization.{section}{each}": field.annotation for each in (name, field.alias or name)}
    assert {key for key in IGNORED if key.startswith("zero_optimization.")} <= known.keys()
    for key, kind in PASSED.items():
        if key.startswith("zero_optimization."):
            assert known[key] in (kind, kind | None), key


def test_the_resolved_configuration_is_one_line_and_stored_with_the_run() -> None:
    config = deepspeed("engine.offload_optimizer=cpu", "engine.precision=bf16", "cluster.device=cpu")
    files = check_engine(config, 4)
    settings = json.loads(files["deepspeed.json"])
    assert settings["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    assert settings["bf16"] == {"enabled": True} and settings["data_types"] == {"grad_accum_dtype": "fp32"}
    (line,) = describe_engine(config, 4)
    assert "\n" not in line and json.loads(line.removeprefix("DeepSpeed: ")) == settings


def test_nothing_is_compiled_at_the_start_of_0_19_8() -> None:
    """Without the mend deepspeed 0.19.8 builds `deepspeed_shm_comm` when its communication starts on a CPU."""
    import deepspeed

    from llama_train.engine.deepspeed.mend import no_compilation_at_start

    assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__  # else the mend is not needed any more
    no_compilation_at_start(deepspeed)
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False
