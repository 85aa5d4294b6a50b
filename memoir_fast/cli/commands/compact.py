"""`memoir compact`: fills the pages of a saved memory up, and takes off what deleted edits left."""

from memoir_fast.cli.options import Device, Dtype, Json, Model, Quiet
from memoir_fast.cli.saved import Memory, Out, Recipe, changed, tell_taught


def compact(
    model: Model,
    memory: Memory,
    recipe: Recipe = None,
    out: Out = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Fill pages up and take off what deleted edits left, by teaching the edits of such pages again; save the memory.

    Each is in the folder as soon as it is learned: in that of --memory, or in that of --out where no memory is there
    yet. One that is there is replaced at the end.

    Exit code 3: some edit was not learned.
    """
    with changed(model, memory, out, dtype, device, json_file, step_by_step=True) as (memoir, target):
        results = memoir.compact(recipe=recipe, progress=not quiet)
        memoir.save_pretrained(target)
    tell_taught(memoir, results, target, json_file, quiet)
