"""The folder of one evaluation, from which a run that was cut off goes on."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memoir_fast.atomic import replace
from memoir_fast.errors import MemoirError

_MEMORY = re.compile(r"memory-(\d{6})")


class RunFolder:
    """params.json, one file per finished stage, edits.jsonl, and the memory after so many edits.

    Args:
        path (Path): made where it does not exist.
        params (dict): what decides the results, in plain values.
        fresh (bool): forget what an earlier run left. Default: False.

    Raises:
        MemoirError: the folder holds a run with other params, or something else.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, params: dict[str, Any], fresh: bool = False) -> None:
        self.path = path
        file = path / "params.json"
        if path.exists() and not file.exists() and any(path.iterdir()):
            raise MemoirError(f"{path} is neither empty nor the folder of a run: it has no params.json")
        if file.exists():
            old = json.loads(file.read_text(encoding="utf-8"))
            differing = sorted(name for name in {*old, *params} if old.get(name) != params.get(name))
            if differing and not fresh:
                what = "; ".join(f"{name}: {old.get(name)!r} there, {params.get(name)!r} here" for name in differing)
                raise MemoirError(f"{path} holds another run ({what}); name another folder, or start afresh")
            if fresh:
                shutil.rmtree(path)
        path.mkdir(parents=True, exist_ok=True)
        replace(file, f"{json.dumps(params, indent=2, ensure_ascii=False)}\n".encode())

    def stage(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute` returns, in plain values; where an earlier run has come so far, what it returned there."""
        file = self.path / f"{name}.json"
        if file.exists():
            return json.loads(file.read_text(encoding="utf-8"))
        value = compute()
        replace(file, json.dumps(value, ensure_ascii=False).encode())
        return json.loads(json.dumps(value))

    def finished(self, pattern: str) -> list[Any]:
        """The values of the stages that there are, of names like `pattern`, in their order."""
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.path.glob(f"{pattern}.json"))]

    @property
    def memory(self) -> tuple[int, Path | None]:
        """How many edits were learned when the memory was last saved, and where it is."""
        saved = {int(found[1]): path for path in self.path.iterdir() if (found := _MEMORY.fullmatch(path.name))}
        saved = {count: path for count, path in saved.items() if (path / "memory_config.json").exists()}
        return max(saved.items(), default=(0, None))

    @property
    def edits(self) -> list[dict[str, Any]]:
        """What became of the edits that the saved memory has learned."""
        file = self.path / "edits.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return [json.loads(line) for line in lines[: self.memory[0]]]

    def checkpoint(self, results: list[dict[str, Any]], save: Callable[[Path], None]) -> None:
        """Keeps the results of all edits so far, and the memory, which `save` writes; then drops the older one.

        The memory's folder is the one commit point: results past it are not counted.
        """
        _, old = self.memory
        lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in results)
        replace(self.path / "edits.jsonl", lines.encode())
        new = self.path / f"memory-{len(results):06d}"
        save(new)
        if old is not None and old != new:
            shutil.rmtree(old)
