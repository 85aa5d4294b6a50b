"""What several tests of evaluations use."""

import pytest


@pytest.fixture
def saved_model(tiny_llama, tiny_tokenizer, tmp_path):
    """The tiny model and its tokenizer in a folder, as the command line takes it."""
    tiny_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")
