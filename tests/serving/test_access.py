"""API keys and the admin token: what may be one, where they come from, and that no message repeats them."""

import pytest

from memoir_fast.serving.access import TOKEN_VARIABLE, Keys, Token, read_keys, read_token

KEY = "sk-0123456789abcdef"


def test_each_key_has_its_banks():
    keys = Keys({KEY: "acme", KEY + "0": ["acme", "", "emea"], KEY + "1": None, KEY + "2": []})
    assert keys.banks_of(KEY) == {"acme"} and keys.banks_of(KEY + "0") == {"acme", "emea"}
    assert keys.banks_of(KEY + "1") == keys.banks_of(KEY + "2") == frozenset()
    for unknown in ("", KEY[:-1], KEY + "3", KEY.upper(), "\udcff", "é" * 20):
        assert keys.banks_of(unknown) is None


def test_a_token_is_itself_alone():
    token = Token(KEY)
    assert token.is_(KEY) and not any(token.is_(one) for one in ("", KEY[:-1], KEY + "0", "\udcff"))


def test_secrets_are_not_kept():
    for one in (Keys({KEY: None}), Token(KEY)):
        assert KEY not in repr(vars(one))


@pytest.mark.parametrize(
    "banks", [{}, [], None, {"short": "acme"}, {KEY + " x": "acme"}, {KEY: 3}, {KEY: [3]}, {KEY: " a"}]
)
def test_what_is_none_is_refused_without_being_repeated(banks):
    with pytest.raises((TypeError, ValueError)) as raised:
        Keys(banks)
    assert KEY not in str(raised.value) and "short" not in str(raised.value)


def test_files(tmp_path, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_keys(None) is None and read_token(None) is None
    file = tmp_path / "file"
    file.write_text(f'{{"{KEY}": ["acme"]}}')
    found = read_keys(file)
    assert found is not None and found.banks_of(KEY) == {"acme"}
    file.write_text(f"{KEY}\n")
    monkeypatch.setenv(TOKEN_VARIABLE, KEY + "0")
    in_file, in_environment = read_token(file), read_token(None)
    assert in_file is not None and in_file.is_(KEY)
    assert in_environment is not None and in_environment.is_(KEY + "0")


@pytest.mark.parametrize(
    "text", [b"{", b"[]", b"\xff", b'{"a": 1}', b'{"%s": null, "%s": "acme"}' % ((KEY.encode(),) * 2)]
)
def test_files_that_hold_no_keys_are_named(tmp_path, text):
    file = tmp_path / "keys.json"
    file.write_bytes(text)
    with pytest.raises(ValueError, match="keys.json") as raised:
        read_keys(file)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("text", [b"", b"short", b"two words of it, long", b"\xff" * 20])
def test_files_that_hold_no_token_are_named(tmp_path, text):
    file = tmp_path / "token"
    file.write_bytes(text)
    with pytest.raises(ValueError, match="token"):
        read_token(file)


@pytest.mark.parametrize("read", [read_keys, read_token])
def test_files_that_are_not_there(tmp_path, read):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")
