"""A step's losses and gradient: eagerly, or replayed from a CUDA graph once the same edits are stepped again.

On a GPU the tail of a large model takes longer to issue, operation by operation, than to run. An edit takes several
steps over the same rows, so its third step is captured and the others are one launch each.
"""

import logging
from collections.abc import Callable

import torch

from memoir_fast.editing.batch import Batch

logger = logging.getLogger("memoir_fast")

_EAGER = 2  # steps of the same edits before one is captured: a capture pays after some three replays

Found = tuple[torch.Tensor, Callable[[], torch.Tensor]]


class Differentiated:
    """Losses of the edits that a batch has chosen, and their gradient to the layer's outputs.

    Args:
        batch (Batch): what the losses are of.
        capture (bool): use CUDA graphs. A pass that cannot be captured runs eagerly from then on; it is logged once.

    A capture is of this thread alone (`thread_local`): others may use the device meanwhile.
    """

    def __init__(self, batch: Batch, capture: bool) -> None:
        self._batch = batch
        self.captures = capture
        self._chosen: list[int] | None = None
        self._steps = 0  # of the edits that are chosen
        self._graph: torch.cuda.CUDAGraph | None = None
        self._input = self._losses = self._gradient = batch.tokens.new_empty(0)

    def __call__(self, residual: torch.Tensor) -> Found:
        """Losses [chosen] for the residual [tokens, O], and a function that gives their sum's gradient to it.

        What is returned holds until the next call.
        """
        if self._chosen != self._batch.chosen:
            self._chosen, self._graph, self._steps = self._batch.chosen, None, 0
        self._steps += 1
        if not self.captures or self._steps <= _EAGER:
            return self._eager(residual)
        if self._graph is None and not self._capture(residual):
            return self._eager(residual)
        assert self._graph is not None
        self._input.copy_(residual)
        self._graph.replay()
        return self._losses, lambda: self._gradient

    def _eager(self, residual: torch.Tensor) -> Found:
        residual = residual.detach().requires_grad_()
        with torch.enable_grad():
            losses = self._batch.losses(residual)
            total = losses.sum()
        return losses.detach(), lambda: torch.autograd.grad(total, residual)[0]

    def _capture(self, residual: torch.Tensor) -> bool:
        """Captures one step; False, and everything as before, where that cannot be done."""
        device = residual.device
        self._input = residual.detach().clone()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        failure: Exception | None = None
        with torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                losses, gradient = self._eager(self._input)
                self._losses, self._gradient = losses, gradient()
            except Exception as error:  # whatever the model raises, the capture must be ended
                failure = error
            try:
                graph.capture_end()
            except RuntimeError as error:
                failure = failure or error
            if failure is not None:
                _forget_capture()
        torch.cuda.current_stream(device).wait_stream(stream)
        if failure is not None:
            self.captures = False
            logger.info("learning runs without CUDA graphs: %s", str(failure).splitlines()[0])
            return False
        self._graph = graph
        return True


def _forget_capture() -> None:
    """After a failed capture the random generator still counts for it, until a capture has succeeded."""
    empty = torch.cuda.CUDAGraph()
    empty.capture_begin(capture_error_mode="thread_local")
    empty.capture_end()
