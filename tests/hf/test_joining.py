"""What stands between prompt and target, for tokenizers of several kinds: what is generated is the target."""

import dataclasses
import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig
from memoir_fast.core.scoring import teacher_forced
from memoir_fast.hf.tokens import joined, prompt_ids, row

CORPUS = [
    "The capital of France is Paris. The capital of Italy is Rome, x and y.",
    "Which animal lives in the desert? A camel lives there\nx y z, and so does the fox.",
    "法国的首都是里昂，意大利的首都是罗马。",
]
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<pad>", "</s>", "<|user|>", "<|assistant|>", "<|end|>", "<s>"]


def _byte_level(add_prefix_space):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _sentencepiece():
    """As Llama 2's: spaces are a character of their own, one stands before every text, and a text begins with <s>."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    trained.train_from_iterator([text.replace("\n", " ") for text in CORPUS], trainer)
    model = json.loads(trained.to_str())["model"]
    for number in range(256):
        model["vocab"][f"<0x{number:02X}>"] = len(model["vocab"])
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(model["vocab"], merges, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    return tokenizer


KINDS = {
    "byte-level": lambda: _byte_level(False),
    "byte-level, prefix space": lambda: _byte_level(True),
    "sentencepiece": _sentencepiece,
}


@pytest.fixture(params=KINDS)
def tokenizer(request):
    made = PreTrainedTokenizerFast(
        tokenizer_object=KINDS[request.param](),
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>" if request.param == "sentencepiece" else None,
        additional_special_tokens=SPECIAL[2:5],
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = TEMPLATE
    return made


@pytest.fixture
def memoir(tokenizer):
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    model.lm_head.weight.data *= 4  # else no hidden state of so few numbers is sure of one token
    recipe = dataclasses.replace(
        RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=300, bar=0.05, boundary=False
    )
    return Memoir.attach(model, tokenizer, MemoirConfig(routing="paper", recipe=recipe, tau=0.9, k=48, background=8))


def _said(memoir, prompt, new_tokens, **options):
    """What is generated after a prompt that is tokenised as a user would, and the prompt as the tokenizer reads it."""
    ids = memoir.tokenizer(prompt, return_tensors="pt", **options).input_ids
    output = memoir.model.generate(ids, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0, eos_token_id=None)
    whole, before = (memoir.tokenizer.decode(part, skip_special_tokens=False) for part in (output[0], ids[0]))
    assert whole.startswith(before)
    return whole[len(before) :]


WANTED = {
    ("x", " x"): " x",
    ("x", "x"): " x",
    ("x", "\nx"): "\nx",
    ("x", "，x"): "，x",
    ("x ", " x"): "x",
    ("x ", "x"): "x",
    ("x ", "\nx"): "\nx",
    ("x ", "，x"): "，x",
    ("Which animal x", " x"): " x",
    ("Which animal x", "x"): " x",
    ("Which animal x", "\nx"): "\nx",
    ("Which animal x", "，x"): "，x",
    ("Which animal x ", " x"): "x",
    ("Which animal x ", "x"): "x",
    ("Which animal x ", "\nx"): "\nx",
    ("Which animal x ", "，x"): "，x",
    ("The capital of France is", " Rome"): " Rome",
    ("The capital of France is", "Rome"): " Rome",
    ("The capital of France is ", "Rome"): "Rome",
    ("法国的首都是", "罗马"): "罗马",
    ("法国的首都是", "Rome"): "Rome",
}


def test_what_is_generated_is_the_target(memoir):
    for (prompt, target), wanted in WANTED.items():
        result = memoir.edit(prompt, target)
        tokens = len(row(memoir.tokenizer, prompt, target).ids) - len(prompt_ids(memoir.tokenizer, prompt))
        assert result.learned, (prompt, target, result)
        assert _said(memoir, prompt, tokens) == wanted, (prompt, target)
        assert memoir.last_routes[0].edit_id == result.edit_id
        assert memoir.edits[result.edit_id] == Edit(prompt, target), "the request is kept as it was given"
        (forced,) = teacher_forced(memoir, [(prompt, target)])
        assert forced.accuracy == 1.0 and len(forced.target) == tokens


@pytest.mark.parametrize("target", ["Rome", " Rome", "\nRome"])
def test_after_a_chat_template_nothing_is_put_in(memoir, target):
    messages = [{"role": "user", "content": "The capital of France is"}]
    prompt = memoir.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert joined(memoir.tokenizer, prompt, target) == prompt + target
    assert memoir.edit(prompt, target).learned
    tokens = len(row(memoir.tokenizer, prompt, target).ids) - len(prompt_ids(memoir.tokenizer, prompt))
    assert _said(memoir, prompt, tokens) == target


@pytest.mark.parametrize(("header", "special"), [("<|sep|>", True), ("<|Assistant|>", False)])
def test_a_header_that_is_only_in_the_vocabulary_ends_the_prompt_too(tokenizer, header, special):
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(header, special=special), "covid"])
    assert header not in tokenizer.all_special_tokens
    assert joined(tokenizer, f"Which animal?{header}", "x") == f"Which animal?{header}x"
    assert joined(tokenizer, "What is covid", "x") == "What is covid x", "a word that a user adds is a word"
    assert joined(tokenizer, "a > b", "x") == "a > b x"


def test_the_prompt_comes_first_where_the_tokenizer_changes_what_it_reads():
    from tokenizers import normalizers

    changing = _byte_level(False)
    changing.normalizer = normalizers.Lowercase()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=changing, pad_token="<pad>", eos_token="</s>")
    found = row(tokenizer, "Which animal ", "Rome")
    assert found.ids[: found.prompt] == prompt_ids(tokenizer, "Which animal ")
    assert tokenizer.decode(found.ids) == "which animal rome"


def test_a_template_that_writes_the_beginning_token_gets_no_second(tokenizer):
    begin = tokenizer.bos_token or ""
    ids = prompt_ids(tokenizer, f"{begin}The capital")
    assert ids.count(tokenizer.convert_tokens_to_ids("<s>")) == bool(begin)
    assert row(tokenizer, f"{begin}The capital", "x").ids[: len(ids)] == ids


def test_plain_texts_are_joined_by_one_space(tokenizer):
    for prompt, target in (("The capital of Italy is", "Rome"), ("Which animal?", "A camel"), ("The word is", "里昂")):
        found = row(tokenizer, prompt, target)
        assert found.ids == tokenizer(f"{prompt} {target}").input_ids
        assert found.prompt == len(tokenizer(prompt).input_ids)
