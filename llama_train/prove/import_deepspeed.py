"""Imported by the server that a proof's processes are forked from, so that not each of them imports DeepSpeed.

Not where there is CUDA: a process that has looked for devices must not be forked.
"""

import torch

from llama_train.engine.deepspeed.mend import import_deepspeed

if not torch.cuda.is_available():
    import_deepspeed("cpu", 0)
