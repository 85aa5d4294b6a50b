"""Edits in dual form: the update of W_m stays in the span of the edited layer's inputs, so only that span is learned.

An edit with n tokens has inputs A [n, k] at its columns; its update is dW = A^T C with C [n, O], and adds G C to the
layer's outputs, where G = A A^T [n, n] is computed once. No step touches k or W_m.
"""

from dataclasses import dataclass, field

import torch

from memoir_fast.editing.recipe import Recipe


@dataclass
class Coefficients:
    """C of one edit, in the coordinates that the optimiser moves.

    SGD moves C itself: a step along g in C is the step along A^T g in W_m. Adam is no rotation-invariant method, so it
    moves Z with dW = Q^T Z, where Q = T^T A is an orthonormal basis of the inputs' span, T = U S^(-1/2) from
    G = U S U^T; then C = T Z.
    """

    gram: torch.Tensor  # [n, n]
    value: torch.Tensor  # C [n, O], changed in place
    recipe: Recipe
    steps: int = field(init=False, default=0)
    _basis: torch.Tensor | None = field(init=False, default=None)  # T [n, r]
    _moments: list[torch.Tensor] = field(init=False, default_factory=list)  # Z, its mean and mean square slope [r, O]

    def __post_init__(self) -> None:
        if self.recipe.optimizer == "adam":
            self._basis = orthonormal_coordinates(self.gram)
            size = (self._basis.shape[1], self.value.shape[1])
            self._moments = [self.gram.new_zeros(size) for _ in range(3)]

    def step(self, gradient: torch.Tensor) -> None:
        """One step against the loss's gradient to the layer's outputs, [n, O]."""
        recipe = self.recipe
        self.steps += 1
        if recipe.clip is not None:
            norm = ((self.gram @ gradient) * gradient).sum().clamp(min=0).sqrt()  # of A^T g
            gradient = gradient * (recipe.clip / (norm + 1e-6)).clamp(max=1.0)
        if self._basis is None:
            self.value -= recipe.learning_rate * gradient
            return
        z, mean, square = self._moments
        slope = self._basis.mT @ (self.gram @ gradient)
        mean.lerp_(slope, 1 - BETAS[0])
        square.lerp_(slope * slope, 1 - BETAS[1])
        unbiased = mean / (1 - BETAS[0] ** self.steps)
        spread = (square / (1 - BETAS[1] ** self.steps)).sqrt()
        z -= recipe.learning_rate * unbiased / (spread + 1e-8)
        torch.matmul(self._basis, z, out=self.value)


BETAS = (0.9, 0.999)


def orthonormal_coordinates(gram: torch.Tensor) -> torch.Tensor:
    """T [n, r] such that T^T A has orthonormal rows, for any A with A A^T = gram [n, n]; r is the rank of gram."""
    values, vectors = torch.linalg.eigh(gram)
    cut = values[-1].clamp(min=0) * len(gram) * torch.finfo(gram.dtype).eps
    kept = values > cut
    return vectors[:, kept] / values[kept].sqrt()
