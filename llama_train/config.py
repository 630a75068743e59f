"""Every setting of a training run: typed, with its unit, and checked as a whole before a process group exists.

The YAML files under `configs/` fill these classes. `TrainConfig.check` finds what contradicts itself; what depends
on the data or on the number of processes is checked where those are known (`data/order.py`, `parallel/layout.py`).
"""

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from llama_foundation.errors import ConfigError
from llama_train.slurm import SlurmConfig
from llama_train.survive.fault_plan import parse_faults


@dataclass
class RopeScaling:
    """Llama 3.1's frequency scaling (meta-llama/llama-models, models/llama3/model.py, apply_scaling)."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192  # tokens


@dataclass
class ModelConfig:
    """The shape of a Llama. Sizes are in elements; `context` is the longest sequence it is made for, in tokens."""

    name: str = MISSING
    vocab_size: int = MISSING
    hidden_size: int = MISSING
    layers: int = MISSING
    heads: int = MISSING
    kv_heads: int = MISSING
    ffn_size: int = MISSING
    context: int = MISSING
    norm_epsilon: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tied_embeddings: bool = False
    initial_std: float = 0.02  # no Llama paper publishes its initial weights: assumed

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads

    def check(self) -> None:
        for name in ("vocab_size", "hidden_size", "layers", "heads", "kv_heads", "ffn_size", "context"):
            _at_least(f"model.{name}", getattr(self, name), 1)
        if self.hidden_size % self.heads:
            raise ConfigError(
                f"model.heads={self.heads} does not divide model.hidden_size={self.hidden_size}; "
                f"use one of {_divisors(self.hidden_size, at_most=256)}"
            )
        if self.head_dim % 2:
            raise ConfigError(
                f"model.hidden_size={self.hidden_size} over model.heads={self.heads} gives heads of "
                f"{self.head_dim} elements; rotary embeddings need an even number"
            )
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"model.kv_heads={self.kv_heads} does not divide model.heads={self.heads}; "
                f"use one of {_divisors(self.heads, at_most=self.heads)}"
            )


@dataclass
class Segment:
    """A change of the data on the way: from step `from_step` on, what is not null replaces the value before."""

    from_step: int = MISSING  # optimizer step, counted from 0
    batch_size: int | None = None  # sequences per optimizer step, over all ranks
    sequence_length: int | None = None  # tokens
    sources: dict[str, float] | None = None  # weights


class Packing(Enum):
    concatenate = "concatenate"  # documents one after the other, cut at every sequence_length tokens
    best_fit = "best_fit"  # packs made ahead by llama-pack: only documents longer than sequence_length are cut


@dataclass
class DataConfig:
    """Which tokens a step sees: a pure function of these settings, the seed, the amendments and the step."""

    shards: str = MISSING  # the output directory of llama-data
    sources: dict[str, float] = field(default_factory=dict)  # weights per source; empty: in proportion to tokens
    sequence_length: int = MISSING  # tokens
    batch_size: int = MISSING  # sequences per optimizer step, over all ranks
    segments: list[Segment] = field(default_factory=list)  # sorted by from_step
    document_masks: bool = True  # attention stops at document boundaries and positions restart
    packing: Packing = Packing.concatenate  # how documents become training sequences

    def check(self) -> None:
        _at_least("data.sequence_length", self.sequence_length, 1)
        _at_least("data.batch_size", self.batch_size, 1)
        _check_weights("data.sources", self.sources)
        if self.packing is Packing.best_fit and not self.document_masks:
            raise ConfigError(
                "data.packing=best_fit puts documents side by side that have nothing to do with each other, and needs "
                "data.document_masks=true; use that, or data.packing=concatenate"
            )
        previous = 0
        for number, segment in enumerate(self.segments):
            where = f"data.segments[{number}]"
            if segment.from_step <= previous:
                raise ConfigError(f"{where}.from_step={segment.from_step} must be greater than {previous}")
            previous = segment.from_step
            for name in ("batch_size", "sequence_length"):
                if getattr(segment, name) is not None:
                    _at_least(f"{where}.{name}", getattr(segment, name), 1)
            if segment.sources is not None:
                _check_weights(f"{where}.sources", segment.sources)

    def longest_sequence(self) -> int:
        """The longest sequence of any segment, in tokens."""
        return max([self.sequence_length, *(s.sequence_length for s in self.segments if s.sequence_length)])


@dataclass
class ValidationConfig:
    """Loss on the held-out shards: always the same windows, in order."""

    every: int = 0  # optimizer steps between validations; 0: never (one at the end of the run if batches > 0)
    batches: int = 0  # batches of data.batch_size sequences; 0: no validation at all
    task_files: str | None = None  # a directory of JSONL tasks (docs/evaluation.md)
    tasks: list[str] = field(default_factory=list)  # of task_files; none: all of them
    tasks_every: int = 0  # optimizer steps between runs of the tasks; 0: never
    tasks_limit: int = 100  # examples of each task; 0: all
    tasks_shots: int = 0  # other examples of the file shown, with their answers, before each
    delimiters: dict[str, str] = field(default_factory=dict)  # task → text between question and answer; " " elsewhere

    def check(self) -> None:
        for name in ("every", "batches", "tasks_every", "tasks_limit", "tasks_shots"):
            _at_least(f"validation.{name}", getattr(self, name), 0)
        if self.tasks_every > 0 and self.task_files is None:
            raise ConfigError(f"validation.tasks_every={self.tasks_every} needs validation.task_files=DIR")


@dataclass
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019), decoupled weight decay, none on norms."""

    learning_rate: float = MISSING  # peak
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0  # global L2 norm; 0: no clipping

    def check(self) -> None:
        _in_range("optimizer.learning_rate", self.learning_rate, 0, 10)
        _in_range("optimizer.beta1", self.beta1, 0, 1)
        _in_range("optimizer.beta2", self.beta2, 0, 1)
        _in_range("optimizer.epsilon", self.epsilon, 0, 1)
        _in_range("optimizer.weight_decay", self.weight_decay, 0, 10)
        _in_range("optimizer.max_grad_norm", self.max_grad_norm, 0, 1e9)


class ScheduleName(Enum):
    cosine = "cosine"
    linear = "linear"
    constant = "constant"
    warmup_stable_decay = "warmup_stable_decay"


@dataclass
class ScheduleConfig:
    """Learning rate over steps, as a factor of optimizer.learning_rate (optimizer/schedule.py)."""

    name: ScheduleName = ScheduleName.cosine
    warmup_steps: int = 0  # linear from 0
    decay_steps: int | None = None  # warmup_stable_decay: length of the last, linear part
    final_fraction: float = 0.1  # the floor, as a fraction of the peak
    total_steps: int | None = None  # where the schedule ends; null: at `steps`

    def check(self) -> None:
        _at_least("schedule.warmup_steps", self.warmup_steps, 0)
        _in_range("schedule.final_fraction", self.final_fraction, 0, 1)
        if self.name is ScheduleName.warmup_stable_decay and self.decay_steps is None:
            raise ConfigError("schedule.decay_steps=null: warmup_stable_decay needs the length of its decay, in steps")


class PipelineSchedule(Enum):
    """In which order a pipeline stage computes forward and backward passes; m micro-batches, p ranks."""

    gpipe = "gpipe"  # all forward, then all backward (Huang et al. 2019): m micro-batches of activations
    one_f_one_b = "one_f_one_b"  # one forward, one backward (Narayanan et al. 2019): at most p of them
    interleaved = "interleaved"  # 1F1B over several stages a rank (Narayanan et al. 2021): a smaller bubble
    interleaved_zero_bubble = "interleaved_zero_bubble"  # and weight gradients fill the bubble (Qi et al. 2023)
    zero_bubble_v = "zero_bubble_v"  # two stages a rank in a V: the first rank holds both ends (Qi et al. 2024)
    dual_pipe_v = "dual_pipe_v"  # the same V, a forward and a backward pass overlapped (DeepSeek-AI 2024; Qi 2025)


class ContextMethod(Enum):
    """How attention sees the tokens of other context ranks."""

    all_gather = "all_gather"  # gathers K and V; sequences are cut head to tail (Llama Team 2024, section 3.3.2)
    ulysses = "ulysses"  # exchanges heads for tokens (Jacobs et al. 2023); needs as many KV heads as ranks
    ring = "ring"  # K and V travel from rank to rank (Liu et al. 2023); no document masks


@dataclass
class LayoutConfig:
    """Who computes which slice: the five axes of the device mesh. It never changes what is computed."""

    pipeline: int = 1
    data_replicate: int = 1
    data_shard: int = -1  # -1: all processes that are left
    context: int = 1
    tensor: int = 1
    micro_batch_size: int = 1  # sequences per forward pass on one data-parallel rank
    pipeline_schedule: PipelineSchedule = PipelineSchedule.one_f_one_b
    stages_per_rank: int = 1  # pipeline stages on every rank; 2 or more for the interleaved schedules, 2 for a V
    layers_per_stage: list[int] | None = None  # from the first stage to the last; null: balanced, the head weighed in
    context_method: ContextMethod = ContextMethod.all_gather
    replicate_kv_heads: bool = False  # allow more tensor ranks than KV heads: every rank keeps all of K and V's weights

    def check(self) -> None:
        for name in ("pipeline", "data_replicate", "context", "tensor", "micro_batch_size", "stages_per_rank"):
            _at_least(f"layout.{name}", getattr(self, name), 1)
        if self.data_shard != -1:
            _at_least("layout.data_shard", self.data_shard, 1)
        for count in self.layers_per_stage or []:
            _at_least("layout.layers_per_stage", count, 1)


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

    def check(self) -> None:
        _at_least("engine.activation_checkpointing_every", self.activation_checkpointing_every, 1)
        _at_least("engine.loss_chunk", self.loss_chunk, 0)
        if self.float8 is not Float8.none and self.precision is not Precision.bf16:
            raise ConfigError(
                f"engine.float8={self.float8.name} multiplies what is otherwise in bfloat16, but engine.precision="
                f"{self.precision.name}; set engine.precision=bf16, or engine.float8=none"
            )


@dataclass
class CheckpointConfig:
    """When weights and optimizer state are written, and which are kept."""

    every: int = 0  # optimizer steps; 0: only at the end and when asked to stop
    keep_last: int = 2  # the newest n stay
    keep_every: int = 0  # steps divisible by this stay for good; 0: none
    asynchronous: bool = False  # write in the background, from a copy in host memory
    fast: str | None = None  # parent of a second, faster tier: a directory that all ranks share
    fast_every: int = 0  # optimizer steps between checkpoints there
    fast_keep_last: int = 1  # the newest n stay there
    init_from: str | None = None  # a checkpoint or Hugging Face directory: its weights, a fresh optimizer
    init_optimizer: bool = False  # with init_from: AdamW's moments and count of updates too

    def check(self) -> None:
        for name, least in (
            ("every", 0),
            ("keep_last", 1),
            ("keep_every", 0),
            ("fast_every", 0),
            ("fast_keep_last", 1),
        ):
            _at_least(f"checkpoint.{name}", getattr(self, name), least)
        if self.init_optimizer and self.init_from is None:
            raise ConfigError("checkpoint.init_optimizer=true needs checkpoint.init_from=DIR, whose state is taken")
        if (self.fast is None) != (self.fast_every == 0):
            raise ConfigError(
                f"checkpoint.fast={self.fast} and checkpoint.fast_every={self.fast_every} go together: where the fast "
                "tier is, and how often it is written; set both, or neither"
            )


class OnNonFinite(Enum):
    """What is done when loss or gradient norm is not finite."""

    stop = "stop"
    skip = "skip"  # the update is not made, the optimizer's step count stays, the run goes on with the next batch


class OnSpike(Enum):
    """What is done when the loss is far above the ones before."""

    ignore = "ignore"
    log = "log"  # an event in metrics.jsonl
    skip = "skip"  # the update is not made, the run goes on with the next batch
    rewind = "rewind"  # back to the last good checkpoint, jumping over the batches up to this one (an amendment)


@dataclass
class SurviveConfig:
    """What a run does about bad numbers, slow ranks and silent corruption."""

    non_finite: OnNonFinite = OnNonFinite.stop
    spike: OnSpike = OnSpike.log
    spike_sigma: float = 6.0  # standard deviations above the mean of the window
    spike_window: int = 100  # losses of the steps before; no spike is seen before there are as many
    most_interventions: int = 10  # updates skipped and rewinds of the whole run; one more stops it
    compare_replicas_every: int = 0  # optimizer steps between comparisons of weights and moments held twice; 0: never
    replay_steps: list[int] = field(default_factory=list)  # computed twice and compared; the first step is 1
    slow_rank_every: int = 0  # optimizer steps between comparisons of the ranks' own time; 0: never
    slow_rank_factor: float = 1.3  # a rank that takes this many times the median is named

    def check(self) -> None:
        _in_range("survive.spike_sigma", self.spike_sigma, 1, 1e6)
        _at_least("survive.spike_window", self.spike_window, 2)
        for step in self.replay_steps:
            _at_least("survive.replay_steps", step, 1)
        for name in ("most_interventions", "compare_replicas_every", "slow_rank_every"):
            _at_least(f"survive.{name}", getattr(self, name), 0)
        _in_range("survive.slow_rank_factor", self.slow_rank_factor, 1.01, 1e6)


class ConsoleName(Enum):
    auto = "auto"  # progress bar on a terminal, plain lines elsewhere
    progress = "progress"
    lines = "lines"
    none = "none"


LOOKED_AT_STEPS = 20
"""Most steps whose trace or memory snapshot one run writes: a trace of one step may take 100 MB."""


@dataclass
class LoggingConfig:
    """Where the numbers go. metrics.jsonl is always written."""

    console: ConsoleName = ConsoleName.auto
    every: int = 10  # optimizer steps between plain console lines
    wandb: bool = False
    wandb_project: str = "llama-train"
    wandb_entity: str | None = None
    tensorboard: bool = False
    report: bool = True  # report.html when the process ends
    # Looking inside of single steps. Steps count as in metrics.jsonl: the first is 1.
    profile_steps: list[int] = field(default_factory=list)  # traced into RUN/profile
    profile_ranks: list[int] = field(default_factory=lambda: [0])  # whose traces and memory snapshots are written
    memory_snapshot_steps: list[int] = field(default_factory=list)  # every CUDA allocation, into RUN/memory
    statistics_every: int = 0  # optimizer steps between statistics of every parameter and layer; 0: never

    def check(self, steps: int) -> None:
        """Args: steps: of the whole run."""
        _at_least("logging.statistics_every", self.statistics_every, 0)
        for name in ("profile_steps", "memory_snapshot_steps"):
            chosen = getattr(self, name)
            if len(chosen) > LOOKED_AT_STEPS:
                raise ConfigError(
                    f"logging.{name} lists {len(chosen)} steps; use at most {LOOKED_AT_STEPS}: each leaves a large file"
                )
            for step in chosen:
                if not 1 <= step <= steps:
                    raise ConfigError(f"logging.{name}={chosen}: step {step} must be between 1 and steps={steps}")
        if not self.profile_ranks and (self.profile_steps or self.memory_snapshot_steps):
            raise ConfigError("logging.profile_ranks=[] leaves nobody to write what was asked for; use [0]")
        for rank in self.profile_ranks:
            _at_least("logging.profile_ranks", rank, 0)


COMMUNICATION_VARIABLES = (
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "FI_EFA_FORK_SAFE",
    "FI_EFA_USE_DEVICE_RDMA",
    "FI_PROVIDER",
    "UCX_NET_DEVICES",
    "UCX_TLS",
)
"""What cluster.nccl may set besides NCCL_*, TORCH_NCCL_* and GLOO_*."""


@dataclass
class ClusterConfig:
    """The machines: what speed figures, device choice, communication and binding to cores need."""

    name: str = "auto"
    device: str = "auto"  # auto, cpu or cuda
    peak_tflops: float | None = None  # dense bf16 TFLOP/s per device, for MFU; null: looked up by device name
    nccl: dict[str, str] = field(default_factory=dict)  # environment of NCCL and Gloo, set before they start
    processes_per_node: int | None = None  # that share the fastest network; null: as many as the launcher started here
    numa_binding: bool = False  # each process on the cores next to its device; without devices, on cores of its own
    # For llama-plan only.
    accelerator: str | None = None  # a file of configs/accelerator/
    devices_per_node: int | None = None
    network_gb_per_second: float | None = None  # of one device to other nodes, one direction
    interface: str | None = None  # network interface that the processes meet on, as ip(8) names it; null: the host's
    slurm: SlurmConfig = field(default_factory=SlurmConfig)

    def check(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"cluster.device={self.device}; use auto, cpu or cuda")
        if self.processes_per_node is not None:
            _at_least("cluster.processes_per_node", self.processes_per_node, 1)
        if self.devices_per_node is not None:
            _at_least("cluster.devices_per_node", self.devices_per_node, 1)
        if self.network_gb_per_second is not None:
            _in_range("cluster.network_gb_per_second", self.network_gb_per_second, 1e-3, 1e5)
        if self.interface is not None and not re.fullmatch(r"[\w.:@-]{1,15}", self.interface):
            raise ConfigError(f"cluster.interface={self.interface!r} is no name of a network interface; see: ip link")
        self.slurm.check()
        for name, value in self.nccl.items():
            if not re.fullmatch(r"(NCCL|TORCH_NCCL|GLOO)_[A-Z0-9_]+", name) and name not in COMMUNICATION_VARIABLES:
                raise ConfigError(
                    f"cluster.nccl.{name}: only names that begin with NCCL_, TORCH_NCCL_ or GLOO_, and "
                    f"{', '.join(COMMUNICATION_VARIABLES)} can be set here; set others where the job is started"
                )
            if name.startswith("NCCL_") and value in ("True", "False"):
                raise ConfigError(
                    f"cluster.nccl.{name}={value}: NCCL's switches are numbers; use {int(value == 'True')}"
                )
            if "\0" in value or "\n" in value:
                raise ConfigError(f"cluster.nccl.{name}={value!r} must be one line of text")


CHECKED = (
    "model",
    "data",
    "validation",
    "optimizer",
    "schedule",
    "layout",
    "engine",
    "checkpoint",
    "survive",
    "cluster",
)
"""The groups that check themselves; logging needs the number of steps as well."""


@dataclass
class TrainConfig:
    """One training run."""

    output: str = "runs"  # parent of all run directories
    name: str = "train"  # the run directory is output/name
    seed: int = 0
    steps: int = MISSING  # optimizer steps of the whole run
    stop_at_step: int | None = None  # end this process early, as if asked to stop; the run can go on later
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    survive: SurviveConfig = field(default_factory=SurviveConfig)
    fault: dict[str, str] = field(default_factory=dict)  # faults injected on purpose: +fault.kill=rank2@step7

    def check(self) -> None:
        """Find every contradiction that needs neither data nor devices to be seen.

        Raises:
            ConfigError: naming the setting, its value, what is allowed and the fix.
        """
        _at_least("steps", self.steps, 1)
        if self.stop_at_step is not None:
            _at_least("stop_at_step", self.stop_at_step, 1)
        if not self.name or self.name.startswith((".", "/")) or ".." in self.name.split("/"):
            raise ConfigError(f"name={self.name!r} must be a plain directory name below output={self.output}")
        for name in CHECKED:
            getattr(self, name).check()
        longest = self.data.longest_sequence()
        if longest > self.model.context:
            raise ConfigError(
                f"data.sequence_length={longest} is longer than model.context={self.model.context}; "
                f"use at most {self.model.context}, or a model with a longer context"
            )
        total = self.schedule.total_steps or self.steps
        if self.schedule.warmup_steps + (self.schedule.decay_steps or 0) > total:
            raise ConfigError(
                f"schedule.warmup_steps={self.schedule.warmup_steps} and schedule.decay_steps="
                f"{self.schedule.decay_steps} do not fit into {total} steps"
            )
        self.logging.check(self.steps)
        parse_faults(self.fault)
        _at_least("engine.garbage_collection_every", self.engine.garbage_collection_every, 0)
        if self.logging.memory_snapshot_steps and self.cluster.device == "cpu":
            raise ConfigError(
                f"logging.memory_snapshot_steps={self.logging.memory_snapshot_steps}: only CUDA's allocator keeps a "
                "history, and cluster.device=cpu; use logging.memory_snapshot_steps=[]"
            )


def _at_least(name: str, value: Any, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name}={value} must be at least {least}")


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name}={value} must be between {low} and {high}")


def _check_weights(name: str, weights: dict[str, float]) -> None:
    for source, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise ConfigError(f"{name}.{source}={weight} must be a weight of at least 0")
    if weights and not sum(weights.values()) > 0:
        raise ConfigError(f"{name}: at least one weight must be above 0")


def _divisors(number: int, at_most: int) -> str:
    return ", ".join(str(n) for n in range(1, min(number, at_most) + 1) if number % n == 0)
