"""What PEFT may put around a model that has a memory: adapters of weights, but no soft prompts."""

from typing import Any

from torch import nn

from memoir_fast.errors import UnsupportedModelError


def beneath_adapters(layer: Any) -> Any:
    """The layer that adapters of PEFT are put around; any other as it is.

    A memory beside that one leaves every adapter in the place, and under the names, that it has without a memory: PEFT
    looks for these when it saves, loads, adds, merges or takes off adapters.
    """
    while callable(getattr(layer, "get_base_layer", None)) and isinstance(
        getattr(layer, "base_layer", None), nn.Module
    ):
        layer = layer.base_layer
    return layer


def require_no_soft_prompt(model: Any) -> None:
    """Refuses a model before whose prompts PEFT puts virtual tokens, or keys and values of such.

    An edit would be taught without them and asked behind them, where its prompt has other codes.

    Args:
        model: a model of transformers, or PEFT's around one. A model inside of PEFT's is known by what PEFT's
            `generate` leaves on it.

    Raises:
        UnsupportedModelError: the adapter that is active is of that kind.
    """
    preparing = getattr(model, "prepare_inputs_for_generation", None)
    for one in (model, getattr(preparing, "__self__", None)):
        settings = getattr(one, "active_peft_config", None)
        if getattr(settings, "is_prompt_learning", False):
            raise UnsupportedModelError(
                f"{type(settings).__name__} puts virtual tokens in front of every prompt, behind which no edit is "
                "found: use an adapter of the weights (LoRA, DoRA, IA3), or call the model without the virtual tokens"
            )
