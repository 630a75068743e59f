"""How loss, gradients and updates are computed."""

from dataclasses import dataclass
from enum import Enum

from llama_foundation.errors import ConfigError
from llama_train.config.checks import at_least


class EngineName(Enum):
    native = "native"  # PyTorch's FSDP2
    deepspeed = "deepspeed"  # DeepSpeed's ZeRO 1, 2 and 3


class OffloadTo(Enum):
    """Where DeepSpeed keeps what a device does not hold."""

    none = "none"
    cpu = "cpu"
    nvme = "nvme"


class Precision(Enum):
    fp32 = "fp32"
    bf16 = "bf16"  # compute in bfloat16; master weights, gradient reduction and optimizer in float32
    fp64 = "fp64"  # for proofs


class ActivationCheckpointing(Enum):
    none = "none"
    full = "full"  # keep only each block's input and compute the block again in the backward pass
    selective = "selective"  # keep what matrix multiplications and attention gave, compute the rest again
    every_n = "every_n"  # full for every `activation_checkpointing_every`-th block, none for the others


class AttentionName(Enum):
    auto = "auto"  # the fastest that this hardware, precision and model have
    sdpa = "sdpa"  # PyTorch's scaled_dot_product_attention
    flex = "flex"  # FlexAttention: compiled for the document mask, skips what it hides; CUDA
    varlen = "varlen"  # flash attention over documents of various lengths; CUDA, bf16


class Float8(Enum):
    none = "none"
    tensorwise = "tensorwise"  # one scale per tensor: fastest
    rowwise = "rowwise"  # one scale per row: closer to bf16


class Reshard(Enum):
    auto = "auto"  # always, but never under the pipeline schedules that split the backward pass
    always = "always"  # memory of one block at a time, one more gathering
    never = "never"  # memory of all weights of a stage


class ReduceGradients(Enum):
    """When FSDP2 reduces gradients over the ranks."""

    auto = "auto"  # every micro-batch, but once under the pipeline schedules that split the backward pass
    every_micro_batch = "every_micro_batch"  # no rank ever holds more than its slice of the gradients
    once = "once"  # at the end: less communication, but unsharded float32 gradients (282 GB for 70B)


WATCHDOG_SECONDS = 15.0
"""From its deadline to the end of the process the watchdog takes at most 11 s (docs/reliability.md)."""


@dataclass
class EngineConfig:
    """How loss, gradients and updates are computed."""

    name: EngineName = EngineName.native
    precision: Precision = Precision.fp32
    attention: AttentionName = AttentionName.sdpa  # not auto before the kernels of CUDA have been run and compared
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.none
    activation_checkpointing_every: int = 2  # every_n: every this many blocks
    loss_chunk: int = 2048  # tokens whose logits are held at once for the loss; 0: all
    float8: Float8 = Float8.none  # matrix multiplications of the blocks in float8 (torchao, compute capability 9.0)
    compile: bool = False  # torch.compile, block by block
    async_tensor_parallel: bool = False  # CUDA, with compile: messages of tensor parallelism while matrices multiply
    reshard_after_forward: Reshard = Reshard.auto  # FSDP2: free gathered weights between forward and backward
    reduce_gradients: ReduceGradients = ReduceGradients.auto
    offload: bool = False  # FSDP2: weights, gradients and optimizer state in host memory, gathered block by block
    timeout_seconds: float = 600.0  # a collective, or a step without progress, that takes longer ends the job
    garbage_collection_every: int = 0  # optimizer steps, on all ranks at once; 0: whenever Python likes, on each rank
    # For name=deepspeed only.
    zero_stage: int | None = None  # cut over the ranks: 1 optimizer state, 2 and gradients, 3 and weights
    offload_optimizer: OffloadTo = OffloadTo.none  # optimizer state and master weights
    offload_parameters: OffloadTo = OffloadTo.none  # zero_stage=3: the weights that are computed with
    nvme_path: str | None = None  # a directory on the NVMe device
    config_file: str | None = None  # a ds_config.json whose settings are passed on

    @property
    def collective_seconds(self) -> float:
        """When a collective gives up: after the watchdog's deadline, for it knows who is waited for, and where."""
        return self.timeout_seconds + WATCHDOG_SECONDS

    def check(self) -> None:
        at_least("engine.activation_checkpointing_every", self.activation_checkpointing_every, 1)
        at_least("engine.loss_chunk", self.loss_chunk, 0)
        if self.float8 is not Float8.none and self.precision is not Precision.bf16:
            raise ConfigError(
                f"engine.float8={self.float8.name} multiplies what is otherwise in bfloat16, but engine.precision="
                f"{self.precision.name}; set engine.precision=bf16, or engine.float8=none"
            )
