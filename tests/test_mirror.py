"""Tests mirror the package: each file has `tests/<its folder>/test_<its name>.py`, or says here where it is tested."""

from pathlib import Path

import memoir_fast

PACKAGE = Path(memoir_fast.__file__).parent
TESTS = Path(__file__).parent

ELSEWHERE = {
    "_source_tree.py": "test_source_tree.py",
    "checks.py": "ops",
    "cli/commands": "cli/test_app.py",
    "cli/demo_screen.py": "cli/test_demo.py",
    "cli/options.py": "cli/test_app.py",
    "core/calibration.py": "core/test_threshold.py",
    "core/edit.py": "hf/test_joining.py",
    "core/edited_model.py": "test_memoir.py",
    "core/status.py": "test_memoir.py",
    "editing/batch.py": "editing/test_fast.py",
    "editing/context.py": "editing/test_wordings.py",
    "editing/dual.py": "editing/test_fast.py",
    "errors.py": "test_public_api.py",
    "evaluation/answers.py": "evaluation/test_scores.py",
    "evaluation/baselines.py": "evaluation/test_run.py",
    "evaluation/likelihood.py": "evaluation/test_scores.py",
    "evaluation/report.py": "evaluation/test_run.py",
    "evaluation/roc.py": "evaluation/test_scores.py",
    "evaluation/run_folder.py": "evaluation/test_killed.py",
    "evaluation/team.py": "distributed/test_evaluation.py",
    "evaluation/tables.py": "evaluation/test_run.py",
    "hf/answer.py": "cli/test_demo.py",
    "hf/loading.py": "cli/test_app.py",
    "hf/call.py": "hf/test_overrides.py",
    "hf/around.py": "test_copies.py",
    "hf/own_pass.py": "hf/test_partial_forward.py",
    "hf/beside.py": "hf/routing/test_continuous.py",
    "hf/continuous.py": "hf/routing/test_continuous.py",
    "hf/following.py": "hf/routing",
    "hf/pieces.py": "hf/routing/test_packed.py",
    "hf/replays.py": "hf/routing/test_replays.py",
    "hf/routing.py": "hf/routing",
    "hf/routing_site.py": "hf/routing/test_codes.py",
    "hf/asked.py": "serving/test_app.py",
    "hf/request_errors.py": "serving/test_malformed.py",
    "hf/request_messages.py": "serving/test_malformed.py",
    "hf/request_values.py": "serving/test_malformed.py",
    "hf/server.py": "serving/test_app.py",
    "hf/tensor_parallel.py": "distributed/test_row_parallel.py",
    "hf/sequence_state.py": "hf/routing/test_sequence_state.py",
    "io/fields.py": "io/test_readers.py",
    "io/files.py": "io/test_hostile_files.py",
    "io/fingerprint.py": "io/test_checkpoint.py",
    "io/json_stream.py": "io/test_readers.py",
    "modules/adding.py": "modules/test_memoir_linear.py",
    "modules/replaceable.py": "hf/test_partial_forward.py",
    "modules/model_state.py": "modules/test_memoir_linear.py",
    "modules/part_memory.py": "distributed/test_row_parallel.py",
    "modules/prompt_sums.py": "modules/test_routing_code.py",
    "modules/sharded_rows.py": "distributed/test_sharded_rows.py",
    "modules/routed.py": "modules/test_memoir_linear.py",
    "modules/search.py": "modules/test_code_store.py",
    "modules/turns.py": "test_threads.py",
    "io/changes.py": "io/test_durable.py",
    "io/salvage.py": "io/test_repair.py",
    "io/without_model.py": "io/test_hostile_journals.py",
    "io/plausible.py": "io/test_hostile_folders.py",
    "modules/spawned.py": "test_copies.py",
    "serving/gate.py": "serving/test_app.py",
    "upkeep.py": "test_compact.py",
    "modules/views.py": "test_threads.py",
    "native.py": "native/test_registration.py",
    "ops/linear_limits.py": "native/test_masked_linear.py",
    "ops/registration.py": "test_backends.py",
    "recipe.py": "test_config.py",
    "reference": "ops",
}


def test_each_file_is_tested_where_it_is_looked_for():
    files = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py")) if not path.name.startswith("__")]
    used = set()
    for file in files:
        if file.parts[0] == "kernels" or (TESTS / file.parent / f"test_{file.name}").is_file():
            continue
        told = [name for name in map(str, (file, *file.parents)) if name in ELSEWHERE]
        assert told, f"{file} has no tests/{file.parent}/test_{file.name}, and no place elsewhere"
        used.add(told[0])
    assert used == set(ELSEWHERE), f"these have a file of their own, or are gone: {set(ELSEWHERE) - used}"
    for file, place in ELSEWHERE.items():
        assert (TESTS / place).exists(), f"{file} is said to be tested in {place}"
