"""DeepSpeed's checkpoints, laid out here by hand as DeepSpeed 0.19.8 lays them out, read without DeepSpeed."""

import dataclasses
import json
import os
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_foundation.errors import CheckpointError
from llama_train.checkpoint.deepspeed_files import DeepSpeedDirectory
from llama_train.checkpoint.huggingface import import_native
from llama_train.checkpoint.huggingface_config import to_huggingface
from llama_train.checkpoint.load import open_weights
from llama_train.checkpoint.restore import open_checkpoint
from llama_train.config import ModelConfig
from llama_train.model.names import is_norm, parameter_shapes
from llama_train.prove.harness import whole

MODEL = ModelConfig("x", vocab_size=11, hidden_size=6, layers=1, heads=3, kv_heads=1, ffn_size=5, context=16)
WORLD = 3


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in parameter_shapes(MODEL).items()}


def moments(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the tests write as AdamW's state: other numbers for every tensor."""
    return {f"optimizer/exp_avg/{name}": tensor + 1 for name, tensor in tensors.items()} | {
        f"optimizer/exp_avg_sq/{name}": tensor * 2 for name, tensor in tensors.items()
    }


def adamw(parts: list[torch.Tensor], how: str) -> dict[str, Any]:
    """Return AdamW's state after 7 updates as torch's, DeepSpeed's own and an elastic one are saved."""
    state: dict[Any, Any] = {n: {"exp_avg": part + 1, "exp_avg_sq": part * 2} for n, part in enumerate(parts)}
    if how == "elastic":
        return {"base_optimizer_state": list(state.values()), "base_optimizer_state_step": 7}
    if how == "in the groups":
        return {"base_optimizer_state": {"state": state, "param_groups": [{"step": 7, "params": [0]}]}}
    for moments in state.values():
        moments["step"] = torch.tensor(7.0)
    key = "optimizer_state_dict" if how == "stage 3" else "base_optimizer_state"
    return {key: {"state": state, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95), "params": [0]}]}}


def write(directory: Path, stage: int, prefix: str = "", how: str | None = None) -> dict[str, torch.Tensor]:
    """Write what WORLD ranks would: two groups, matrices and norms; `how` AdamW's state is saved, if at all."""
    tensors = weights()
    groups = [[name for name in tensors if not is_norm(name)], [name for name in tensors if is_norm(name)]]
    tag = directory / "global_step7"
    tag.mkdir(parents=True)
    (directory / "latest").write_text("global_step7")
    (directory / "config.json").write_text(json.dumps(to_huggingface(MODEL, "float32", 1, 2)))
    shapes = [OrderedDict((prefix + name, tensors[name].shape) for name in group) for group in groups]
    parts: list[list[torch.Tensor]] = [[] for _ in range(WORLD)]
    for group in groups:
        if stage == 3:
            for rank in range(WORLD):
                pieces = []
                for name in group:
                    flat = tensors[name].flatten()
                    share = -(-flat.numel() // WORLD)
                    piece = flat[rank * share : (rank + 1) * share]
                    pieces.append(torch.cat([piece, torch.zeros(share - piece.numel())]))
                parts[rank].append(torch.cat(pieces))
        else:
            flat = torch.cat([tensors[name].flatten() for name in group])
            flat = torch.cat([flat, torch.zeros(-flat.numel() % (2 * WORLD))])
            for rank, part in enumerate(flat.chunk(WORLD)):
                parts[rank].append(part.clone())
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    for rank in range(WORLD):
        state = {key: parts[rank], "zero_stage": stage, "partition_count": WORLD if stage == 3 else [WORLD, WORLD]}
        state |= adamw(parts[rank], how) if how else {}
        torch.save({"optimizer_state_dict": state, "ds_config": {}}, optimizer_file(tag, rank))
    torch.save({"module": {}, "param_shapes": shapes}, tag / "mp_rank_00_model_states.pt")
    return tensors


def optimizer_file(tag: Path, rank: int) -> Path:
    return tag / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"


@pytest.mark.parametrize(("stage", "prefix"), [(1, ""), (2, "module."), (3, "module._orig_mod.")])
def test_master_weights_of_every_stage_are_read_as_they_were(tmp_path: Path, stage: int, prefix: str) -> None:
    tensors = write(tmp_path, stage, prefix)
    source = open_weights(tmp_path)
    assert isinstance(source, DeepSpeedDirectory)
    assert {name: entry.shape for name, entry in source.tensors.items()} == {
        f"weights/{name}": tuple(tensor.shape) for name, tensor in tensors.items()
    }
    for name, tensor in tensors.items():
        assert torch.equal(source.read(f"weights/{name}", (0,) * tensor.ndim, tuple(tensor.shape)), tensor)
    name = "lm_head.weight"
    assert torch.equal(source.read(f"weights/{name}", (2, 1), (5, 3)), tensors[name][2:7, 1:4])


@pytest.mark.parametrize(("stage", "how"), [(1, "state"), (2, "in the groups"), (2, "elastic"), (3, "stage 3")])
def test_the_state_of_adamw_comes_along(tmp_path: Path, stage: int, how: str) -> None:
    tensors = write(tmp_path / "in", stage, how=how)
    expected = moments(tensors) | {f"weights/{name}": tensor for name, tensor in tensors.items()}
    import_native(open_weights(tmp_path / "in"), tmp_path / "out")
    made = open_checkpoint(tmp_path / "out")
    assert made.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(whole(made, name), tensor), name
    assert made.state["engine"] == {"adamw_step": 7}
    import_native(open_weights(tmp_path / "in"), tmp_path / "rounded", torch.bfloat16)
    rounded = open_checkpoint(tmp_path / "rounded")
    assert rounded.tensors.keys() == {f"weights/{name}" for name in tensors} and "engine" not in rounded.state


def test_a_state_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 2, how="state")
    tag = tmp_path / "global_step7"
    state = torch.load(optimizer_file(tag, 1))["optimizer_state_dict"]["base_optimizer_state"]["state"]
    rewrite(tag, 1, {"base_optimizer_state": {"state": state | {1: state[1] | {"step": torch.tensor(8.0)}}}})
    with pytest.raises(CheckpointError, match=r"different numbers of updates: \[7.0, 8.0\]"):
        open_weights(tmp_path)
    rewrite(tag, 1, adamw([torch.zeros(1)] * 2, "state"))
    with pytest.raises(CheckpointError, match=r"rank_1.*exp_avg of group 0 is shorter than the weights"):
        open_weights(tmp_path)


def test_llama_convert_makes_a_checkpoint_of_it(tmp_path: Path) -> None:
    tensors = write(tmp_path / "in", 3)
    import_native(open_weights(tmp_path / "in" / "global_step7"), tmp_path / "out")
    made = open_checkpoint(tmp_path / "out")
    assert all(torch.equal(whole(made, f"weights/{name}"), tensor) for name, tensor in tensors.items())
    assert dataclasses.replace(made.model_config(), name="x") == MODEL


def test_universal_checkpoints_are_read(tmp_path: Path) -> None:
    tensors = weights()
    for name, tensor in tensors.items():
        place = tmp_path / "zero" / name
        place.mkdir(parents=True)
        torch.save({"param": tensor, "cat_dim": 0}, place / "fp32.pt")
        for kind in ("exp_avg", "exp_avg_sq"):
            torch.save({"param": moments(tensors)[f"optimizer/{kind}/{name}"]}, place / f"{kind}.pt")
        torch.save(torch.tensor(7.0), place / "step.pt")
    (tmp_path / "config.json").write_text(json.dumps(to_huggingface(MODEL, "float32", 1, 2)))
    source = open_weights(tmp_path)
    expected = moments(tensors) | {f"weights/{name}": tensor for name, tensor in tensors.items()}
    assert source.tensors.keys() == expected.keys() and source.adamw_step == 7
    for name, tensor in expected.items():
        assert torch.equal(source.read(name, (0,) * tensor.ndim, tuple(tensor.shape)), tensor)
    for written, message in (("seven", "holds a str, not a number"), (Evil(), "names posix.system")):
        torch.save(written, tmp_path / "zero" / "lm_head.weight" / "step.pt")
        with pytest.raises(CheckpointError, match=message):
            open_weights(tmp_path)
    (tmp_path / "zero" / "lm_head.weight" / "step.pt").unlink()
    assert open_weights(tmp_path).tensors.keys() == {f"weights/{name}" for name in tensors}


def test_universal_checkpoints_of_zero_3_are_flat_and_count_their_updates_in_one_file(tmp_path: Path) -> None:
    tensors = weights()
    for name, tensor in tensors.items():
        place = tmp_path / "zero" / f"module.{name}"
        place.mkdir(parents=True)
        torch.save(tensor.flatten(), place / "fp32.pt")
        for kind in ("exp_avg", "exp_avg_sq"):
            torch.save(moments(tensors)[f"optimizer/{kind}/{name}"].flatten(), place / f"{kind}.pt")
    flat = [torch.ones(4), torch.ones(2)]
    torch.save({"fp32_flat_groups": flat} | adamw(flat, "stage 3"), tmp_path / "zero" / "optimizer_state.pt")
    (tmp_path / "config.json").write_text(json.dumps(to_huggingface(MODEL, "float32", 1, 2)))
    source = open_weights(tmp_path)
    expected = moments(tensors) | {f"weights/{name}": tensor for name, tensor in tensors.items()}
    assert source.tensors.keys() == expected.keys() and source.adamw_step == 7
    for name, tensor in expected.items():
        assert torch.equal(source.read(name, (0,) * tensor.ndim, tuple(tensor.shape)), tensor)
    (tmp_path / "zero" / "optimizer_state.pt").unlink()
    assert open_weights(tmp_path).tensors.keys() == {f"weights/{name}" for name in tensors}
    torch.save(torch.ones(9), tmp_path / "zero" / "module.lm_head.weight" / "fp32.pt")
    with pytest.raises(CheckpointError, match=r"lm_head.weight is of shape \[9\] in the checkpoint and .*\[11, 6\]"):
        import_native(open_weights(tmp_path), tmp_path / "out")


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/deepspeed-evil",)


def rewrite(tag: Path, rank: int, change: dict[str, Any]) -> None:
    path = optimizer_file(tag, rank)
    value = torch.load(path, weights_only=True)
    value["optimizer_state_dict"] |= change
    torch.save(value, path)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    write(tmp_path, 2)
    rewrite(tmp_path / "global_step7", 1, {"loss_scaler": Evil()})
    with pytest.raises(CheckpointError, match=r"names posix.system, which is no tensor"):
        open_weights(tmp_path)
    assert not Path("/tmp/deepspeed-evil").exists()


def test_files_that_do_not_belong_together_are_refused_by_name(tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        write(tmp_path / name, 2)
        return tmp_path / name / "global_step7"

    optimizer_file(broken("missing"), 1).unlink()
    with pytest.raises(CheckpointError, match=r"no \*_optim_states.pt of rank 1"):
        open_weights(tmp_path / "missing")
    rewrite(broken("counts"), 0, {"partition_count": 4})
    with pytest.raises(CheckpointError, match=r"rank_0.*of \{4\} ranks, but there are files of 3"):
        open_weights(tmp_path / "counts")
    rewrite(broken("stages"), 2, {"zero_stage": 1})
    with pytest.raises(CheckpointError, match=r"files of different ZeRO stages: \[1, 2\]"):
        open_weights(tmp_path / "stages")
    tag = broken("parallel")
    shutil.copy(optimizer_file(tag, 0), tag / "zero_pp_rank_0_mp_rank_01_optim_states.pt")
    with pytest.raises(CheckpointError, match=r"mp_rank_01.*ds_to_universal"):
        open_weights(tmp_path / "parallel")
    broken("unknown")
    (tmp_path / "unknown" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"do not say which model this is; put .*config.json there"):
        open_weights(tmp_path / "unknown")


def test_a_checkpoint_of_another_model_is_refused_by_tensor_and_shape(tmp_path: Path) -> None:
    write(tmp_path, 2)
    other = dataclasses.replace(MODEL, ffn_size=7)
    (tmp_path / "config.json").write_text(json.dumps(to_huggingface(other, "float32", 1, 2)))
    with pytest.raises(
        CheckpointError, match=r"gate_proj.weight is of shape \[5, 6\] in the checkpoint and .*\[7, 6\]"
    ):
        import_native(open_weights(tmp_path), tmp_path / "out")
