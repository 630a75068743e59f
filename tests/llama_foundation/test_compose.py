import logging
import os
import re
import shlex
import sys
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import MISSING

from llama_foundation import compose as composing
from llama_foundation.compose import compose, dump, fingerprint, load, main
from llama_foundation.errors import ConfigError, DataError


class Colour(Enum):
    red = "red"
    green = "green"


@dataclass
class Scaling:
    factor: float = 8.0


@dataclass
class Model:
    hidden_size: int = MISSING
    scaling: Scaling | None = None
    colour: Colour = Colour.red
    tied: bool = False


@dataclass
class Segment:
    from_step: int = MISSING
    sources: dict[str, float] | None = None


@dataclass
class Data:
    shards: str = MISSING
    sources: dict[str, float] = field(default_factory=dict)
    segments: list[Segment] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


@dataclass
class Toy:
    output: str = "runs"
    name: str = "toy"
    steps: int = 5
    stop_at_step: int | None = None
    rate: float = 1.0
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)

    def check(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps={self.steps} must be at least 1")


FILES = {
    "toy": """
        defaults:
          - toy_schema
          - model: 3m
          - experiment: null
          - _self_
        data: {shards: somewhere}
        """,
    "model/3m": "hidden_size: 4\n",
    "model/7b": "hidden_size: 8\nscaling: {factor: 2}\n",
    "experiment/large": """
        # @package _global_
        defaults:
          - override /model: 7b
        rate: 0.5
        """,
    "experiment/misspelled": "# @package _global_\nmodel:\n  hiden_size: 3\n",
    "experiment/mistyped": "# @package _global_\nmodel:\n  hidden_size: lots\n",
    "experiment/foreign": "# @package _global_\nmodel: large\n",
    "experiment/torn": "# @package _global_\nmodel: [1,\n",
}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of configurations, and an empty working directory."""
    for name, text in FILES.items():
        path = tmp_path / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(line.removeprefix(" " * 8) for line in text.split("\n")))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(composing, "CONFIGS", tmp_path / "configs")
    return tmp_path


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        compose("toy", Toy, list(overrides))
    return str(error.value)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, list[Toy]]:
    """Run a command that records its configurations, as if typed into a shell."""
    seen: list[Toy] = []
    monkeypatch.setattr(sys, "argv", ["toy", *arguments])
    return main("toy", Toy, seen.append), seen


def test_files_groups_and_overrides_fill_the_schema_in_that_order(toy: Path) -> None:
    config = compose("toy", Toy, ["experiment=large", "rate=0.25", "model.colour=green", "data.paths=[a,b]"])
    assert (config.model.hidden_size, config.model.scaling, config.rate) == (8, Scaling(2.0), 0.25)
    assert (config.model.colour, config.data.paths, config.steps) == (Colour.green, ["a", "b"], 5)


def test_optional_and_empty_sections_can_be_filled_from_the_command_line(toy: Path) -> None:
    config = compose("toy", Toy, ["model.scaling.factor=3", "data.sources={web: 1}", "data.sources.books=0.5"])
    assert config.model.scaling == Scaling(3.0)
    assert config.data.sources == {"web": 1.0, "books": 0.5}
    assert compose("toy", Toy, ["model=7b", "model.scaling=null"]).model.scaling is None
    segments = compose("toy", Toy, ["data.segments=[{from_step: 3, sources: {web: 2}}]"]).data.segments
    assert segments == [Segment(3, {"web": 2.0})]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("modle=3m", "modle is not a setting; did you mean model?"),
        ("+modle=3m", "modle is not a setting; did you mean model?"),
        ("model.hiden_size=3", "model.hiden_size is not a setting; did you mean model.hidden_size?"),
        ("modell.hidden_size=3", "modell is not a setting; did you mean model?"),
        ("hidden_size=3", "hidden_size is not a setting; did you mean model.hidden_size?"),
        ("model.scaling.facter=3", "model.scaling.facter is not a setting; did you mean model.scaling.factor?"),
        ("data.segments=[{from: 1}]", "segments[].from is not a setting; did you mean data.segments[].from_step?"),
        ("+foo=1", "foo is not a setting; the settings of this command are output, name, steps"),
        ("model.zzz=1", "model.zzz is not a setting; the settings of model are hidden_size, scaling, colour, tied"),
    ],
)
def test_unknown_key_is_refused_and_names_the_closest(toy: Path, override: str, expected: str) -> None:
    assert expected in refusal(override)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("steps=many", "steps=many must be a whole number"),
        ("steps=1.5", "steps=1.5 must be a whole number"),
        ("steps=true", "steps=true must be a whole number"),
        ("steps=null", "steps=null must be a whole number"),
        ("stop_at_step=soon", "stop_at_step=soon must be a whole number or null"),
        ("rate=fast", "rate=fast must be a number"),
        ("model.tied=maybe", "model.tied=maybe must be true or false"),
        ("model.colour=blue", "model.colour=blue must be one of red, green"),
        ("data.paths=a", "data.paths=a must be a list, as in 'paths=[a,b]'"),
        ("data.sources={web: lots}", "data.sources.web=lots must be a number"),
        ("data.sources=3", "data.sources=3 must be a mapping, as in 'sources={a: 1, b: 2}'"),
        ("data.segments=[{from_step: x}]", "data.segments[].from_step=x must be a whole number"),
        ("model.scaling=3", "model.scaling=3 must be a section with settings factor or null"),
        ("steps=0", "steps=0 must be at least 1"),
        ("name=${nope}", "name: Interpolation key 'nope' not found"),
    ],
)
def test_bad_value_names_the_field_the_value_and_what_is_allowed(toy: Path, override: str, expected: str) -> None:
    assert expected in refusal(override)


def test_unknown_group_member_names_the_closest_and_all(toy: Path) -> None:
    assert refusal("model=7bb") == "model=7bb does not exist; did you mean model=7b? Known: 3m, 7b"
    assert refusal("model=3") == "model=3 does not exist; did you mean model=3m? Known: 3m, 7b"
    assert "Known: foreign, large, misspelled, mistyped, torn" in refusal("experiment=qqq")


def test_error_in_a_file_names_the_file(toy: Path) -> None:
    assert refusal("experiment=misspelled") == (
        "configs/experiment/misspelled.yaml: model.hiden_size is not a setting; did you mean model.hidden_size?"
    )
    assert refusal("experiment=mistyped") == (
        "configs/experiment/mistyped.yaml: model.hidden_size=lots must be a whole number"
    )
    assert "experiment/torn.yaml" in refusal("experiment=torn")
    assert "configs/experiment/foreign.yaml: this does not fit" in refusal("experiment=foreign")


def test_all_missing_settings_are_named_at_once_with_how_to_give_them(toy: Path) -> None:
    message = refusal("data.shards=???", "model.hidden_size=???")
    assert message.startswith("data.shards, model.hidden_size: not set; give each on the command line ")
    assert "(data.shards=... model.hidden_size=...)" in message


@pytest.mark.parametrize(
    "value", ["a=b", "hello, world", "what's up?", 'say "hi": now', "{x", "50% of $5!", "a'b\"c=d"]
)
def test_value_that_hydra_cannot_read_comes_with_a_quoting_that_works(toy: Path, value: str) -> None:
    message = refusal(f"name={value}")
    suggestion = re.search(r"quote (?:the value|it): (.*?)(?:, or try each with --multirun)?$", message)
    assert suggestion, message
    [typed] = shlex.split(suggestion[1])
    assert compose("toy", Toy, [typed]).name == value


def test_several_values_without_multirun_are_refused_with_the_fix(toy: Path) -> None:
    assert refusal("steps=1,2") == "steps=1,2 has several values; give one, or run one job for each with --multirun"
    assert refusal("data.paths=a,b") == "data.paths=a,b must be a list in brackets: 'data.paths=[a,b]'"
    assert "data.paths=[a cannot be read" in refusal("data.paths=[a")
    assert refusal("steps") == "'steps' is not a setting; write it as key=value"
    assert refusal("=3") == "'=3' has no name before the equals sign; write it as key=value"


def test_main_prints_a_user_error_without_traceback_and_returns_its_exit_code(toy, monkeypatch, capsys) -> None:
    assert run(monkeypatch, "modle=3m") == (2, [])
    assert capsys.readouterr().err == "error: modle is not a setting; did you mean model?\n"
    assert run(monkeypatch, "--cfg", "job", "steps=many") == (2, [])
    assert capsys.readouterr().err == "error: steps=many must be a whole number\n"


def test_main_runs_the_command_and_returns_what_it_returns(toy, monkeypatch) -> None:
    status, [config] = run(monkeypatch, "steps=3")
    assert (status, config.steps) == (0, 3)
    assert main("toy", Toy, lambda config: 7) == 7


@pytest.mark.parametrize("flags_first", [True, False])
def test_cfg_job_prints_the_composed_configuration_and_runs_nothing(toy, monkeypatch, capsys, flags_first) -> None:
    flags, overrides = ["--cfg", "job", "--resolve"], ["experiment=large", "name=${output}-x", "steps=???"]
    status, seen = run(monkeypatch, *(flags + overrides if flags_first else overrides + flags))
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (status, seen) == (0, [])
    assert (printed["model"]["hidden_size"], printed["rate"], printed["name"]) == (8, 0.5, "runs-x")
    assert list(Path.cwd().iterdir()) == []


def test_hydras_flags_leave_our_warnings_alone(toy, monkeypatch, capsys, caplog) -> None:
    logger = logging.getLogger("llama_train.something")
    run(monkeypatch, "--multirun", "rate=1,2")
    logger.warning("falling back")
    assert [record.getMessage() for record in caplog.records] == ["falling back"]


def test_multirun_gives_every_job_its_own_name_made_of_what_is_swept(toy, monkeypatch) -> None:
    status, seen = run(monkeypatch, "--multirun", "model=3m,7b", "rate=3", "data.shards=/a,/b")
    assert status == 0
    assert [(c.name, c.model.hidden_size, c.data.shards, c.rate) for c in seen] == [
        ("toy-model=3m,data.shards=-a", 4, "/a", 3.0),
        ("toy-model=3m,data.shards=-b", 4, "/b", 3.0),
        ("toy-model=7b,data.shards=-a", 8, "/a", 3.0),
        ("toy-model=7b,data.shards=-b", 8, "/b", 3.0),
    ]
    assert [str(path) for path in Path().rglob("*") if path.is_file()] == ["multirun/multirun.yaml"]


def test_multirun_shortens_long_names_and_keeps_them_apart(toy, monkeypatch) -> None:
    long = "x" * 300
    _, seen = run(monkeypatch, "-m", f"data.shards={long}1,{long}2")
    assert len({c.name for c in seen}) == 2
    assert all(len(c.name) < 200 for c in seen)


def test_multirun_runs_the_other_jobs_when_one_is_refused(toy, monkeypatch, capsys) -> None:
    status, seen = run(monkeypatch, "-m", "steps=0,1")
    assert (status, [c.steps for c in seen]) == (2, [1])
    assert "error: steps=0 must be at least 1" in capsys.readouterr().err


def test_multirun_with_a_bad_value_runs_nothing(toy, monkeypatch, capsys) -> None:
    assert run(monkeypatch, "-m", "steps=1,many") == (2, [])
    assert capsys.readouterr().err == "error: steps=many must be a whole number\n"


@pytest.mark.parametrize("arguments", [["steps=3"], ["-m", "steps=1,2"]])
def test_a_bug_in_the_command_is_not_taken_for_a_bad_setting(toy, monkeypatch, arguments: list[str]) -> None:
    def broken(config: Toy) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(sys, "argv", ["toy", *arguments])
    with pytest.raises(ValueError, match="a bug"):
        main("toy", Toy, broken)


def test_a_user_error_of_the_command_is_printed_in_a_sweep_too(toy, monkeypatch, capsys) -> None:
    def refuse(config: Toy) -> None:
        raise DataError(f"nothing at {config.steps}")

    monkeypatch.setattr(sys, "argv", ["toy", "-m", "steps=1,2"])
    assert main("toy", Toy, refuse) == 2
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")] == [
        "error: steps=1: nothing at 1",
        "error: steps=2: nothing at 2",
    ]


@pytest.mark.parametrize("status", [None, 3])
def test_job_in_another_process_tells_the_sweep_that_it_failed(toy, monkeypatch, capsys, status) -> None:
    """As on SLURM: of the status that the job's process keeps, the sweep's own process hears nothing."""
    here = os.getpid()

    def fail(config: Toy) -> int:
        monkeypatch.setattr(os, "getpid", lambda: here + 1)
        if status is None:
            raise DataError(f"nothing at {config.steps}")
        return status

    monkeypatch.setattr(sys, "argv", ["toy", "-m", "steps=1,2"])
    assert main("toy", Toy, fail) == (status or DataError.exit_code)
    words = "nothing at 1" if status is None else "ended with status 3"
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_hydras_pickle_flag_is_refused(toy, monkeypatch, capsys) -> None:
    assert run(monkeypatch, "--experimental-rerun", "x.pickle") == (2, [])
    assert "loads a pickle" in capsys.readouterr().err


def test_target_keys_are_refused(toy: Path) -> None:
    assert "_target_ is not a setting" in refusal("+model._target_=os.system")


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=20) | st.sampled_from(
    ["${steps}", r"\${x}", r"\\${x}", "a${", "???x", "null", "true", "1e3", "- a", "#"]
)
numbers = st.floats(allow_nan=False)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.builds(
        Toy,
        name=texts,
        output=texts,
        steps=st.integers(1, 2**62),
        stop_at_step=st.none() | st.integers(),
        rate=numbers,
        model=st.builds(
            Model,
            hidden_size=st.integers(),
            scaling=st.none() | st.builds(Scaling, numbers),
            colour=st.sampled_from(Colour),
            tied=st.booleans(),
        ),
        data=st.builds(
            Data,
            shards=texts,
            sources=st.dictionaries(texts, numbers, max_size=3),
            segments=st.lists(st.builds(Segment, st.integers(), st.none() | st.just({"a": 1.0})), max_size=2),
            paths=st.lists(texts, max_size=3),
        ),
    )
)
def test_what_dump_writes_load_reads_back_equal(tmp_path: Path, config: Toy) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump(config), encoding="utf-8")
    read = load(path, Toy)
    assert read == config
    assert fingerprint(read) == fingerprint(config)


def test_fingerprint_changes_with_any_setting(toy: Path) -> None:
    configs = [compose("toy", Toy, [override]) for override in ("steps=3", "steps=4", "rate=2", "model.tied=true")]
    assert len({fingerprint(config) for config in configs}) == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps: [1", "cannot be read as a configuration"),
        ("- 1\n", "not a mapping"),
        ("stepps: 3\n", "stepps is not a setting; did you mean steps?"),
        ("steps: x\n", "steps=x must be a whole number"),
        ("steps: 3\n", "data.shards, model.hidden_size: not set"),
        ("name: ${nope}\nmodel: {hidden_size: 1}\ndata: {shards: x}\n", "nope"),
    ],
)
def test_damaged_configuration_file_is_refused_by_name(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(expected)) as error:
        load(path, Toy)
    assert str(path) in str(error.value)


def test_missing_configuration_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load(tmp_path / "nowhere.yaml", Toy)
