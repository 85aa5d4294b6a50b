"""A small random Llama in the forms in which people load one: quantised, offloaded, with adapters.

Each form needs its package. Nothing is downloaded, and the same form is the same model each time.
"""

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import architectures
import torch
from torch import nn

SIZES = {**architectures.ARCHITECTURES["Llama"].sizes, "hidden_size": 64, "intermediate_size": 128}
EDITED = "down_proj"


class Base(NamedTuple):
    """A form of the model."""

    package: str
    """Whose form it is."""
    make: Callable[[], Any]
    """Makes the model, in eval mode."""

    @property
    def missing(self) -> bool:
        """Whether the package is not installed."""
        try:
            return importlib.util.find_spec(self.package) is None
        except ModuleNotFoundError:  # of the package that it is a part of
            return True


def plain() -> Any:
    """The model as it is."""
    return architectures.build("llama", SIZES)


def torchao(config: str, **settings: Any) -> Any:
    """The model quantised by torchao, by the config of that name; a dtype among its settings goes by its name."""
    from torchao import quantization

    settings = {name: getattr(torch, value) if isinstance(value, str) else value for name, value in settings.items()}
    model = plain()
    quantization.quantize_(model, getattr(quantization, config)(**settings))
    return model


def bitsandbytes(bits: int) -> Any:
    """The model with bitsandbytes' layers, as transformers puts them in: all but the head."""
    from bitsandbytes import nn as bnb

    model = plain()
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Linear) or name == "lm_head":
            continue
        shape, weight = (layer.in_features, layer.out_features), layer.weight.data.clone()
        if bits == 8:
            packed = bnb.Linear8bitLt(*shape, bias=False, has_fp16_weights=False)
            packed.weight = bnb.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        else:
            packed = bnb.Linear4bit(*shape, bias=False, compute_dtype=torch.float32, quant_type="nf4")
            packed.weight = bnb.Params4bit(weight, requires_grad=False, quant_type="nf4", module=packed)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, packed.to("cpu"))
    return model.eval()


def quanto(weights: str) -> Any:
    """The model with weights quantised by optimum-quanto."""
    from optimum import quanto as quantisation

    model = plain()
    quantisation.quantize(model, weights=getattr(quantisation, weights))
    quantisation.freeze(model)
    return model


def gguf() -> Any:
    """The model from a GGUF file with weights of 8 bits, which transformers makes floats of as it loads them."""
    import gguf as files
    import transformers

    model = plain()
    sizes, packed = model.config, files.GGMLQuantizationType.Q8_0
    with tempfile.TemporaryDirectory() as folder:
        file = files.GGUFWriter(Path(folder, "model.gguf"), "llama")
        file.add_context_length(sizes.max_position_embeddings)
        file.add_embedding_length(sizes.hidden_size)
        file.add_block_count(sizes.num_hidden_layers)
        file.add_feed_forward_length(sizes.intermediate_size)
        file.add_head_count(sizes.num_attention_heads)
        file.add_head_count_kv(sizes.num_key_value_heads)
        file.add_layer_norm_rms_eps(sizes.rms_norm_eps)
        file.add_vocab_size(sizes.vocab_size)
        names = files.get_tensor_name_map(files.MODEL_ARCH.LLAMA, sizes.num_hidden_layers)
        for name, tensor in model.state_dict().items():
            known, array = names.get_name(name, try_suffixes=(".weight",)) or name, tensor.numpy()
            if array.ndim == 2:
                file.add_tensor(known, files.quants.quantize(array, packed), raw_dtype=packed)
            else:
                file.add_tensor(known, array)
        file.write_header_to_file()
        file.write_kv_data_to_file()
        file.write_tensors_to_file()
        file.close()
        return transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf").eval()


def peft(kind: str = "LoraConfig", model: Any = None, **settings: Any) -> Any:
    """The model with a random adapter of PEFT's; `model` (default: the plain one) is changed in place.

    Args:
        kind (str): which of PEFT's configs. model: what it is put on. **settings: of the config.
    """
    import peft as adapters

    model = plain() if model is None else model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = adapters.get_peft_model(model, getattr(adapters, kind)(task_type="CAUSAL_LM", **settings))
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.02)
    return made.eval()


def offloaded(where: str, model: Any = None) -> Any:
    """The model with weights that accelerate brings when they are needed: from the CPU, from disk, or from both.

    Args:
        where (str): "cpu", "disk" or "device_map". model: which (default: the plain one), changed in place.
    """
    import accelerate

    model, device = plain() if model is None else model, torch.device("cpu")
    if where == "cpu":
        return accelerate.cpu_offload(model, device, offload_buffers=True)
    folder = tempfile.TemporaryDirectory()
    model.kept = folder  # as long as the model
    if where == "disk":
        return accelerate.disk_offload(model, folder.name, device)
    blocks = {f"model.layers.{block}": "disk" if block % 2 else "cpu" for block in range(architectures.BLOCKS)}
    whole = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    return accelerate.dispatch_model(model, {**whole, **blocks}, main_device="cpu", offload_dir=folder.name)


INSIDE, AROUND = ("q_proj", "up_proj"), ("q_proj", EDITED)

BASES = {
    "torchao, int8 weights": Base("torchao", lambda: torchao("Int8WeightOnlyConfig")),
    "torchao, int4 weights": Base("torchao", lambda: torchao("IntxWeightOnlyConfig", weight_dtype="int4")),
    "torchao, int8 weights and activations": Base("torchao", lambda: torchao("Int8DynamicActivationInt8WeightConfig")),
    "bitsandbytes, 8 bits": Base("bitsandbytes", lambda: bitsandbytes(8)),
    "bitsandbytes, 4 bits (NF4)": Base("bitsandbytes", lambda: bitsandbytes(4)),
    "optimum-quanto, int8 weights": Base("optimum.quanto", lambda: quanto("qint8")),
    "optimum-quanto, int4 weights": Base("optimum.quanto", lambda: quanto("qint4")),
    "a GGUF file, Q8_0": Base("gguf", gguf),
    "LoRA on other layers": Base("peft", lambda: peft(target_modules=[*INSIDE])),
    "LoRA on the edited layer": Base("peft", lambda: peft(target_modules=[*AROUND])),
    "DoRA on the edited layer": Base("peft", lambda: peft(target_modules=[*AROUND], use_dora=True)),
    "prefix tuning": Base("peft", lambda: peft("PrefixTuningConfig", num_virtual_tokens=3)),
    "prompt tuning": Base("peft", lambda: peft("PromptTuningConfig", num_virtual_tokens=3)),
    "weights offloaded to the CPU": Base("accelerate", lambda: offloaded("cpu")),
    "weights offloaded to disk": Base("accelerate", lambda: offloaded("disk")),
    "a device map over CPU and disk": Base("accelerate", lambda: offloaded("device_map")),
}
