"""How large weights, gradients and layer outputs are: for every parameter and every layer, on the shards.

Each rank adds up what it holds, on its device; two small all-reduces (sums, and maxima) make it the whole model's, and
one copy brings it to the host. No tensor is gathered and no parameter waited for.
"""

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist

from llama_train.config import ModelConfig
from llama_train.engine.engine import Chunk
from llama_train.model.names import parameter_shapes
from llama_train.observe.metrics import Numbers

_PIECE = 1 << 24  # elements widened to float64 at once: 128 MiB, however large a shard is
_SQUARES, _NOT_FINITE, _COUNT = range(3)


class LayerStatistics:
    """Collects one step at a time: show it outputs and gradients as they come, then `take`.

    Root mean square and largest absolute value of weights before the update, of gradients before clipping, and of each
    layer's output over all tokens of the batch. Values that are not finite make both of them not finite and are counted
    as a fraction.

    Args:
        weights: yields this rank's chunks of the weights, as `Engine.chunks(optimizer=False)` does.
    """

    def __init__(self, model: ModelConfig, device: torch.device, weights: Callable[[], Iterable[Chunk]]) -> None:
        self._names = list(parameter_shapes(model))
        self._layers = model.layers
        self._weights = weights
        self._row = {f"{kind}/{name}": row for row, (kind, name) in enumerate(self._rows())}
        self._sums = torch.zeros(3, len(self._row), dtype=torch.float64, device=device)
        self._largest = torch.zeros(len(self._row), dtype=torch.float64, device=device)

    def look_at_output(self, layer: int, output: torch.Tensor) -> None:
        """Count one micro-batch's output [B, S, D] of a layer."""
        self._add(f"outputs/{layer}", output)

    def look_at_gradients(self, gradients: Iterable[Chunk]) -> None:
        """Count the gradients, and the weights they belong to."""
        for chunks in (gradients, self._weights()):
            for chunk in chunks:
                if chunk.owner:
                    self._add(chunk.name, chunk.tensor)

    def take(self) -> tuple[dict[str, Numbers], list[Numbers]]:
        """Return (by parameter, by layer) over all ranks, the same on each, and begin again. A collective."""
        dist.all_reduce(self._sums)
        dist.all_reduce(self._largest, dist.ReduceOp.MAX)
        squares, not_finite, count = self._sums
        count = count.clamp(min=1)
        table = torch.stack([(squares / count).sqrt(), self._largest, not_finite / count]).tolist()
        self._sums.zero_()
        self._largest.zero_()

        def numbers(kind: str, name: str, *wanted: str) -> Numbers:
            row = self._row[f"{kind}/{name}"]
            values = {"rms": table[0][row], "max": table[1][row], "not_finite": table[2][row]}
            return {f"{kind}_{what}": values[what] for what in wanted}

        parameters = {
            name: numbers("weights", name, "rms", "max") | numbers("gradients", name, "rms", "max", "not_finite")
            for name in self._names
        }
        return parameters, [numbers("outputs", str(n), "rms", "max", "not_finite") for n in range(self._layers)]

    def _rows(self) -> Iterable[tuple[str, str]]:
        yield from (("weights", name) for name in self._names)
        yield from (("gradients", name) for name in self._names)
        yield from (("outputs", str(layer)) for layer in range(self._layers))

    @torch.no_grad()
    def _add(self, name: str, tensor: torch.Tensor) -> None:
        row = self._row[name]
        for piece in tensor.detach().flatten().split(_PIECE):
            wide = piece.double()
            self._sums[_SQUARES, row] += wide.square().sum()
            self._sums[_NOT_FINITE, row] += wide.isfinite().logical_not().sum()
            # A maximum over ranks may drop what is not a number, but not an infinity.
            largest = wide.abs().amax().nan_to_num(nan=torch.inf, posinf=torch.inf)
            self._largest[row] = torch.maximum(self._largest[row], largest)
        self._sums[_COUNT, row] += tensor.numel()
