"""The pipeline schedules by their names in the configuration; importing it takes a second."""

from torch.distributed.pipelining import schedules

from llama_train.config import PipelineSchedule

SCHEDULES = {
    PipelineSchedule.gpipe: schedules.ScheduleGPipe,
    PipelineSchedule.one_f_one_b: schedules.Schedule1F1B,
    PipelineSchedule.interleaved: schedules.ScheduleInterleaved1F1B,
    PipelineSchedule.interleaved_zero_bubble: schedules.ScheduleInterleavedZeroBubble,
    PipelineSchedule.zero_bubble_v: schedules.ScheduleZBVZeroBubble,
    PipelineSchedule.dual_pipe_v: schedules.ScheduleDualPipeV,
}


def is_single(kind: type) -> bool:
    """Whether the schedule has one stage on every rank."""
    return issubclass(kind, schedules.PipelineScheduleSingle)
