"""Who may ask a server what: API keys, each with its banks, and the admin token."""

import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from pathlib import Path

from memoir_fast.core.edit import require_bank
from memoir_fast.io import strict_json

SHORTEST = 16  # characters
TOKEN_VARIABLE = "MEMOIR_ADMIN_TOKEN"
WANTED = 'a JSON object {"KEY": "bank" or ["bank", ...] or null, ...}'


class Keys:
    """API keys, of which nothing but digests is kept, and the banks that each of them sees.

    Args:
        banks: by key, the name of a bank, a list of names, or None for no bank: then edits without a bank are seen.

    Raises:
        TypeError, ValueError: no key, one of fewer than 16 characters or with white space, or no bank's name.

    Example:
        >>> from memoir_fast.serving.access import Keys
        >>> keys = Keys({"sk-0123456789abcdef": ["acme", "emea"], "sk-fedcba9876543210": None})
        >>> sorted(keys.banks_of("sk-0123456789abcdef")), keys.banks_of("sk-fedcba9876543210"), keys.banks_of("sk")
        (['acme', 'emea'], frozenset(), None)
    """

    def __init__(self, banks: Mapping[str, object]) -> None:
        if not isinstance(banks, Mapping) or not banks:
            raise ValueError(f"API keys are {WANTED}, with one at least")
        self._banks = {_digest(require_secret(key, "an API key")): _names(which) for key, which in banks.items()}

    def banks_of(self, key: str) -> frozenset[str] | None:
        """The banks that a key sees; None where it is not known. It takes as long for every key of one length."""
        return self._banks.get(_digest(key))


class Token:
    """A secret, of which nothing but its digest is kept.

    Args:
        secret (str): at least 16 characters, printable ASCII without white space; ValueError otherwise.

    Example:
        >>> from memoir_fast.serving.access import Token
        >>> token = Token("a-secret-of-mine-0")
        >>> token.is_("a-secret-of-mine-0"), token.is_("a-secret-of-yours")
        (True, False)
    """

    def __init__(self, secret: str) -> None:
        self._digest = _digest(require_secret(secret, "the admin token"))

    def is_(self, given: str) -> bool:
        """Whether it is this one, in a time that does not tell how much of it is right."""
        return hmac.compare_digest(self._digest, _digest(given))


def read_keys(file: Path | None) -> Keys | None:
    """The keys of a JSON file; None where no file is named. OSError, or ValueError that names the file."""
    if file is None:
        return None
    text = file.read_bytes()
    try:
        banks = strict_json.loads(text)
    except ValueError as error:
        # Another message may quote a key, as that of one that comes twice.
        why = error if isinstance(error, json.JSONDecodeError) else "not plain, or a key comes twice"
        raise ValueError(f"{file} must hold {WANTED}: {why}") from None
    try:
        return Keys(banks)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None


def read_token(file: Path | None) -> Token | None:
    """The admin token of a file, or else of the environment's MEMOIR_ADMIN_TOKEN; None where there is neither."""
    if file is None:
        secret = os.environ.get(TOKEN_VARIABLE)
        return None if secret is None else Token(secret)
    text = file.read_bytes()
    try:
        return Token(text.decode().strip())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def require_secret(secret: object, what: str) -> str:
    """A key or token that can be sent in a header; ValueError, which does not repeat it, where it cannot."""
    if not isinstance(secret, str) or len(secret) < SHORTEST or not all("!" <= one <= "~" for one in secret):
        raise ValueError(f"{what} must have {SHORTEST} or more characters, printable ASCII without white space")
    return secret


def _names(which: object) -> frozenset[str]:
    names = [which] if isinstance(which, str) else [] if which is None else which
    if not isinstance(names, (list, tuple, set, frozenset)):
        raise TypeError(f"a key's banks are a name, a list of names or null, got {type(which).__name__}")
    return frozenset(map(require_bank, names)) - {""}


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
