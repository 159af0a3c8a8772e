"""A task is read strictly: every message names the file and the key."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from runner.errors import UsageError
from runner.settings import Guard, JudgeOptions
from runner.task import Task, apply_preset, choose_preset, list_presets, load_task, warnings_for

ROOT = Path(__file__).parents[1]
BASE = """
editable: trainer/train.py
prepare: trainer
space: trainer/space.yaml
presets: trainer/presets
data: {dataset: fineweb-edu, vocab_size: 8192, sequence_length: 2048, val_rows: 100}
budget: {seconds: 300, startup_seconds: 200}
"""
PRESETS = {
    "smoke": "{description: small, budget: {steps: 150}, constants: {DEPTH: 4}, data: {dataset: kjv}}",
    "8gb": "{min_gpu_memory_gb: 7.5, limits: {memory_gb: 8}}",
    "h100": "{min_gpu_memory_gb: 70, next_smaller: 8gb}",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    presets = tmp_path / "trainer" / "presets"
    presets.mkdir(parents=True)
    (tmp_path / "autoresearch.yaml").write_text(BASE)
    (tmp_path / "program.md").write_text("Find it.")
    (tmp_path / "trainer" / "train.py").write_text("DEPTH = 8  # blocks\n")
    (tmp_path / "trainer" / "space.yaml").write_text("")
    for name, text in PRESETS.items():
        (presets / f"{name}.yaml").write_text(text)
    return tmp_path


def write(folder: Path, more: str) -> None:
    (folder / "autoresearch.yaml").write_text(BASE + more)


def refusal(folder: Path, preset: str | None = None, overrides: dict[str, object] | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        load_task(folder, preset, overrides)
    return str(caught.value)


def test_without_a_preset_the_file_and_the_defaults_hold(folder: Path) -> None:
    task = load_task(folder)
    assert (task.editable, task.prepare, task.brief, task.preset) == (
        "trainer/train.py",
        "trainer",
        "program.md",
        None,
    )
    assert (task.budget.seconds, task.budget.steps, task.budget.startup_seconds) == (300.0, None, 200.0)
    assert task.data is not None
    assert (task.data.vocab_size, task.data.train_shards, task.limits.pids, task.judge.baselines) == (
        8192,
        10,
        512,
        3,
    )


def test_a_preset_wins_key_by_key_and_its_kind_of_budget_replaces_the_other(folder: Path) -> None:
    task = load_task(folder, "smoke")
    assert task.data is not None
    assert (task.data.dataset, task.data.vocab_size) == ("kjv", 8192)
    assert (task.budget.seconds, task.budget.steps, task.budget.startup_seconds) == (None, 150, 200.0)
    assert (task.preset, task.description, dict(task.constants)) == ("smoke", "small", {"DEPTH": 4})


def test_flags_win_over_the_preset(folder: Path) -> None:
    task = load_task(folder, "smoke", {"budget": {"seconds": 5}, "constants": {"DEPTH": 2}})
    assert (task.budget.seconds, task.budget.steps, dict(task.constants)) == (5.0, None, {"DEPTH": 2})


def test_a_task_is_frozen(folder: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_task(folder).editable = "x"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("limit: {}", "autoresearch.yaml: limit: unknown key (did you mean limits?)"),
        ("limits: {cpu: 2}", "autoresearch.yaml: limits.cpu: unknown key (did you mean cpus?)"),
        ("limits: {cpus: two}", "autoresearch.yaml: limits.cpus: must be a number, not 'two'"),
        ("limits: {cpus: true}", "autoresearch.yaml: limits.cpus: must be a number, not True"),
        ("limits: {cpus: 0}", "autoresearch.yaml: limits.cpus: must be above 0, not 0.0"),
        ("limits: {pids: 3.5}", "autoresearch.yaml: limits.pids: must be a whole number, not 3.5"),
        ("limits: {memory_gb: .nan}", "autoresearch.yaml: limits.memory_gb: must be finite, not nan"),
        ("limits: [1]", "autoresearch.yaml: limits: must be a list of `key: value`, not [1]"),
        ("cost: {gpu_usd_per_hour: 0}", "autoresearch.yaml: cost.gpu_usd_per_hour: must be above 0, not 0.0"),
        ("cost: {gpu_usd_per_hour: -2.5}", "autoresearch.yaml: cost.gpu_usd_per_hour: must be above 0, not -2.5"),
        ("cost: {gpu_usd_per_hour: .inf}", "autoresearch.yaml: cost.gpu_usd_per_hour: must be finite, not inf"),
        ("cost: {gpu_usd_per_hour: cheap}", "autoresearch.yaml: cost.gpu_usd_per_hour: must be a number, not 'cheap'"),
        ("cost: {gpu_usd: 2}", "autoresearch.yaml: cost.gpu_usd: unknown key (did you mean gpu_usd_per_hour?)"),
        ("judge: {baselines: 0}", "autoresearch.yaml: judge.baselines: must be at least 1, not 0"),
        ("score: {batch_row: 1}", "autoresearch.yaml: score.batch_row: unknown key (did you mean batch_rows?)"),
        ("constants: {depth: 1}", "autoresearch.yaml: constants.depth: a constant's name is in upper case"),
        ("constants: {DEPTH: {}}", "autoresearch.yaml: constants.DEPTH: must be a number, text, true, false or a list of these"),
        ("description: x", "autoresearch.yaml: description: unknown key (known: brief, budget, constants, cost, data, editable, gates, judge, limits, prepare, preset, presets, score, space)"),
        ("score: {batch_rows: 1}\nscore: {batch_rows: 2}", "autoresearch.yaml, line 9: the key 'score' comes twice"),
        ("constants: {A: &x 1, B: *x}", "autoresearch.yaml, line 8: aliases are not used here"),
        ("score: [", "autoresearch.yaml, line 8: expected the node content, but found '<stream end>'"),
    ],
)  # fmt: skip
def test_messages_name_file_and_key(folder: Path, more: str, message: str) -> None:
    write(folder, more)
    assert refusal(folder) == message


@pytest.mark.parametrize(
    "key", ["mounts", "hosts", "environment", "image", "network", "devices", "privileged"]
)
@pytest.mark.parametrize("place", ["{key}: [x]", "limits: {{{key}: x}}", "data: {{{key}: x}}"])
def test_a_task_cannot_name_what_belongs_to_the_runner(folder: Path, key: str, place: str) -> None:
    text = (
        BASE.replace("data: {", f"data: {{{key}: x, ")
        if place.startswith("data")
        else BASE + place.format(key=key)
    )
    (folder / "autoresearch.yaml").write_text(text)
    assert refusal(folder).endswith(
        f"{key}: a task cannot name mounts, hosts, environment, images, devices or networks; what a container gets "
        "is decided by the runner and by the flags of whoever starts it"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seconds: 300", "seconds: 300, steps: 5", "autoresearch.yaml: budget: give seconds or steps, not both"),
        ("seconds: 300, ", "", "autoresearch.yaml: budget: give seconds or steps"),
        ("seconds: 300", "seconds: -1", "autoresearch.yaml: budget.seconds: must be above 0, not -1.0"),
        ("8192", "70_000", "autoresearch.yaml: data.vocab_size: must be at most 65,536, not 70,000"),
        ("fineweb-edu", "fineweb", "autoresearch.yaml: data.dataset: 'fineweb' is not one of them (did you mean fineweb-edu?)"),
        ("fineweb-edu", "files", "data.dataset: `files` needs data.source, the folder with your text"),
        ("val_rows: 100", "source: x", "autoresearch.yaml: data.source: goes with data.dataset `files` only, not with fineweb-edu"),
        ("val_rows: 100", "val_rows: 10**9", "autoresearch.yaml: data.val_rows: must be a whole number, not '10**9'"),
        ("val_rows: 100", "val_rows: 2**20", "autoresearch.yaml: data.val_rows: the scores of these rows take 8192 MB, above limits.output_mb (1280)"),
        (", sequence_length: 2048", "", "autoresearch.yaml: data.sequence_length is missing"),
        ("editable: trainer/train.py", "", "autoresearch.yaml: editable is missing"),
        ("trainer/train.py", "/etc/passwd", "autoresearch.yaml: editable: /etc/passwd leaves the task's folder"),
        ("trainer/train.py", "../x.py", "autoresearch.yaml: editable: ../x.py leaves the task's folder"),
        ("trainer/train.py", "trainer/none.py", "autoresearch.yaml: editable: there is no trainer/none.py"),
        ("trainer/train.py", ".git/config", "autoresearch.yaml: editable: .git/config is not part of the task"),
    ],
)  # fmt: skip
def test_impossible_values_and_combinations(folder: Path, old: str, new: str, message: str) -> None:
    assert old in BASE
    (folder / "autoresearch.yaml").write_text(BASE.replace(old, new))
    assert refusal(folder) == message


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("limits: {checkpoint_mb: 2000}", "autoresearch.yaml: limits.checkpoint_mb (2000) is above limits.output_mb (1280)"),
        ("limits: {memory_gb: 1}", "autoresearch.yaml: limits.output_mb (1280) does not fit into limits.memory_gb (1)"),
        ("judge: {baselines: 1, sigma_prior_weight: 0}", "autoresearch.yaml: judge: one baseline and sigma_prior_weight 0 leave no estimate of the noise"),
    ],
)  # fmt: skip
def test_limits_that_exclude_each_other(folder: Path, more: str, message: str) -> None:
    write(folder, more)
    assert refusal(folder) == message


REPORTED = """
editable: solve.py
score:
  level: reported
  command: python3 evaluate.py --all
  metric: test/accuracy
  direction: maximise
  guards: {seconds: {high: 60}, overlap: {low: 0, high: 1e-9}}
budget: {seconds: 60}
judge: {tau: 0.01}
"""


@pytest.fixture
def reported(tmp_path: Path) -> Path:
    for name, text in (("autoresearch.yaml", REPORTED), ("program.md", "Find it."), ("solve.py", "")):
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_reported_task_needs_a_command_and_a_number_and_nothing_else(reported: Path) -> None:
    task = load_task(reported)

    assert task.score.reported
    assert task.score.maximise
    assert task.score.command == ("sh", "-c", "python3 evaluate.py --all")
    assert task.score.guards == (Guard(name="seconds", high=60.0), Guard(name="overlap", low=0.0, high=1e-9))
    assert (task.data, task.prepare) == (None, None)
    # The shipped prior is in bits per byte: the baselines alone say how large this metric's noise is.
    assert (task.judge.baselines, task.judge.sigma_prior_weight) == (3, 0)
    assert warnings_for(task, cpu=True) == ("test/accuracy is the command's own word: no score of this run is verified",)


def test_a_prior_in_the_metrics_own_unit_counts(reported: Path) -> None:
    (reported / "autoresearch.yaml").write_text(REPORTED.replace("tau: 0.01", "tau: 0.01, sigma_prior: 0.2, baselines: 1"))
    task = load_task(reported)

    assert (task.judge.sigma_prior, task.judge.sigma_prior_weight) == (0.2, JudgeOptions().sigma_prior_weight)


def test_a_command_may_be_a_list_of_words_without_a_shell(reported: Path) -> None:
    (reported / "autoresearch.yaml").write_text(REPORTED.replace("python3 evaluate.py --all", "[./run, 'a b', $HOME]"))

    assert load_task(reported).score.command == ("./run", "a b", "$HOME")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  command: python3 evaluate.py --all\n", "", "autoresearch.yaml: score.command is missing: a task with score.level reported needs it"),
        ("  metric: test/accuracy\n", "", "autoresearch.yaml: score.metric is missing: a task with score.level reported needs it"),
        ("  direction: maximise\n", "", "autoresearch.yaml: score.direction is missing: a task with score.level reported needs it"),
        ("judge: {tau: 0.01}", "", "autoresearch.yaml: judge.tau is missing: a task with score.level reported needs it"),
        ("{seconds: 60}", "{}", "autoresearch.yaml: budget: give seconds"),
        ("{seconds: 60}", "{steps: 5}", "autoresearch.yaml: budget.steps: goes with score.level audited only, and this task's is reported"),
        ("{seconds: 60}", "{seconds: 60, tolerance: 0.1}", "autoresearch.yaml: budget.tolerance: goes with score.level audited only, and this task's is reported"),
        ("editable", "prepare: solve.py\neditable", "autoresearch.yaml: prepare: goes with score.level audited only, and this task's is reported"),
        ("editable", "data: {dataset: kjv}\neditable", "autoresearch.yaml: data: goes with score.level audited only, and this task's is reported"),
        ("editable", "limits: {output_mb: 5}\neditable", "autoresearch.yaml: limits.output_mb: goes with score.level audited only, and this task's is reported"),
        ("  metric", "  batch_rows: 4\n  metric", "autoresearch.yaml: score.batch_rows: goes with score.level audited only, and this task's is reported"),
        ("level: reported", "level: audited", "autoresearch.yaml: score.command: goes with score.level reported only, and this task's is audited"),
        ("level: reported", "level: report", "autoresearch.yaml: score.level: 'report' is not one of them (did you mean reported?)"),
        ("direction: maximise", "direction: maximize", "autoresearch.yaml: score.direction: 'maximize' is not one of them (did you mean maximise?)"),
        ("python3 evaluate.py --all", "[python3, 3]", "autoresearch.yaml: score.command: 3 is not text: put it in quotes"),
        ("python3 evaluate.py --all", "[]", "autoresearch.yaml: score.command: must be a line for the shell or a list of words, not []"),
        ("python3 evaluate.py --all", "' '", "autoresearch.yaml: score.command: ' ' is empty, too long or holds a zero byte"),
        ("metric: test/accuracy", "metric: 'a b'", "autoresearch.yaml: score.metric: 'a b' is not a metric's name: a letter, then letters, digits or any of _ . / -, at most 64 in all"),
        ("metric: test/accuracy", "metric: 3", "autoresearch.yaml: score.metric: 3 is not a metric's name: a letter, then letters, digits or any of _ . / -, at most 64 in all"),
        ("{high: 60}", "{}", "autoresearch.yaml: score.guards.seconds: give low, high or both"),
        ("{high: 60}", "60", "autoresearch.yaml: score.guards.seconds: must be a list of `key: value`, not 60"),
        ("{high: 60}", "{max: 60}", "autoresearch.yaml: score.guards.seconds.max: unknown key (known: high, low)"),
        ("{high: 60}", "{low: 61, high: 60}", "autoresearch.yaml: score.guards.seconds: low (61) is above high (60)"),
        ("{high: 60}", "{high: .inf}", "autoresearch.yaml: score.guards.seconds.high: must be finite, not inf"),
        ("tau: 0.01", "tau: 0.01, baselines: 2", "autoresearch.yaml: judge.baselines: without judge.sigma_prior at least 3 are needed, not 2"),
        ("tau: 0.01", "tau: 0.01, sigma_prior_weight: 2", "autoresearch.yaml: judge.sigma_prior_weight: goes with judge.sigma_prior, in the unit of the metric"),
    ],
)  # fmt: skip
def test_what_a_reported_task_cannot_say(reported: Path, old: str, new: str, message: str) -> None:
    assert old in REPORTED
    (reported / "autoresearch.yaml").write_text(REPORTED.replace(old, new))
    assert refusal(reported) == message


def test_flags_for_data_do_not_go_with_a_reported_task(reported: Path) -> None:
    assert refusal(reported, None, {"data": {"dataset": "kjv"}}) == (
        "flags: data: goes with score.level audited only, and this task's is reported"
    )


def test_a_preset_does_not_change_the_level(folder: Path) -> None:
    (folder / "trainer/presets/smoke.yaml").write_text("score: {level: reported}")
    assert refusal(folder, "smoke") == "trainer/presets/smoke.yaml: score.level: only autoresearch.yaml can set it"


def test_an_audited_task_needs_its_prepare_side(folder: Path) -> None:
    (folder / "autoresearch.yaml").write_text(BASE.replace("prepare: trainer\n", ""))
    assert refusal(folder) == "autoresearch.yaml: prepare is missing"


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "train.py"
    outside.write_text("")
    (folder / "trainer" / "train.py").unlink()
    (folder / "trainer" / "train.py").symlink_to(outside)
    assert refusal(folder) == "autoresearch.yaml: editable: trainer/train.py leaves the task's folder"


def test_only_a_flag_may_name_text_outside_the_task(folder: Path, tmp_path: Path) -> None:
    data = {"dataset": "files", "source": str(tmp_path.parent)}
    loaded = load_task(folder, None, {"data": data}).data
    assert loaded is not None
    assert loaded.source == tmp_path.parent.resolve()
    (folder / "autoresearch.yaml").write_text(
        BASE.replace("fineweb-edu", "files").replace("val_rows: 100", "source: /home")
    )
    assert refusal(folder) == "autoresearch.yaml: data.source: /home leaves the task's folder"


def test_a_wrong_preset_is_named_by_its_own_file(folder: Path) -> None:
    (folder / "trainer/presets/smoke.yaml").write_text("budget: {step: 1}")
    assert (
        refusal(folder, "smoke")
        == "trainer/presets/smoke.yaml: budget.step: unknown key (did you mean steps?)"
    )
    (folder / "trainer/presets/smoke.yaml").write_text("editable: x.py")
    assert (
        refusal(folder, "smoke") == "trainer/presets/smoke.yaml: editable: only autoresearch.yaml can set it"
    )


def test_wrong_flags_are_named_as_flags(folder: Path) -> None:
    assert refusal(folder, None, {"budget": {"steps": 0}}) == "flags: budget.steps: must be at least 1, not 0"


@pytest.mark.parametrize("name", ["smok", "../smoke", "/etc/passwd", ""])
def test_an_unknown_preset_lists_those_there_are(folder: Path, name: str) -> None:
    message = refusal(folder, name)
    assert message.startswith(f"there is no preset {name!r}; ")
    assert message.endswith("this task has: 8gb, h100, smoke")


def test_a_folder_without_the_file_is_no_task(tmp_path: Path) -> None:
    assert (
        refusal(tmp_path)
        == f"{tmp_path} is not a task: it has no autoresearch.yaml (`autoresearch init DIR` makes one)"
    )


def test_numbers_are_read_as_people_write_them(folder: Path) -> None:
    write(folder, "constants: {A: 1e-3, B: 2**19, C: no, D: 262_144, E: [0.8, 1], F: true}")
    assert dict(load_task(folder).constants) == {
        "A": 1e-3,
        "B": 2**19,
        "C": "no",
        "D": 262144,
        "E": (0.8, 1),
        "F": True,
    }


def test_the_preset_is_chosen_from_the_card_unless_named(folder: Path) -> None:
    def chosen(**facts: object) -> str | None:
        return choose_preset(folder, **{"cpu": False, **facts})  # type: ignore[arg-type]

    assert chosen(cpu=True) == "smoke"
    assert chosen(gpu_memory_gb=79.6) == "h100"
    assert chosen(gpu_memory_gb=24.0) == "8gb"
    assert chosen(gpu_memory_gb=24.0, named="smoke") == "smoke"
    with pytest.raises(UsageError) as caught:
        chosen(gpu_memory_gb=4.0)
    assert str(caught.value) == (
        "no preset fits a GPU with 4.0 GB: the smallest, 8gb, wants 7.5 GB; name it with --preset 8gb to try all the same, or use --cpu"
    )


def test_a_task_without_presets_uses_its_own_values(folder: Path) -> None:
    (folder / "autoresearch.yaml").write_text(BASE.replace("presets: trainer/presets\n", ""))
    assert choose_preset(folder, cpu=True) is None
    assert list_presets(folder) == ()
    assert refusal(folder, "smoke") == "there is no preset 'smoke'; this task has: none"


def test_a_preset_sets_constants_in_the_file_or_says_why_not(folder: Path) -> None:
    task = load_task(folder, "smoke")
    assert apply_preset("DEPTH = 8  # blocks\n", task) == "DEPTH = 4  # blocks\n"
    with pytest.raises(UsageError) as caught:
        apply_preset("RATE = 8\n", task)
    assert str(caught.value) == (
        "preset smoke does not fit trainer/train.py: DEPTH: no constant of this name at the top level of the file"
    )


def test_seconds_on_the_cpu_are_allowed_with_a_warning(folder: Path) -> None:
    assert len(warnings_for(load_task(folder), cpu=True)) == 1
    assert warnings_for(load_task(folder), cpu=False) == ()
    assert warnings_for(load_task(folder, "smoke"), cpu=True) == ()


def shipped() -> list[Task]:
    return [load_task(ROOT, None), *(load_task(ROOT, preset.name) for preset in list_presets(ROOT))]


def test_every_shipped_preset_loads_and_fits_the_shipped_trainer() -> None:
    names = {preset.name for preset in list_presets(ROOT)}
    assert {"smoke", "tiny", "h100", "24gb", "12gb", "8gb"} <= names
    for task in shipped():
        compile(apply_preset((ROOT / task.editable).read_text(), task), "train.py", "exec")
        assert task.next_smaller is None or task.next_smaller in names


def test_a_price_of_the_gpu_is_optional_and_a_preset_may_have_its_own(folder: Path) -> None:
    write(folder, "")
    assert load_task(folder).cost.gpu_usd_per_hour is None
    write(folder, "cost: {gpu_usd_per_hour: 2}")
    assert load_task(folder).cost.gpu_usd_per_hour == 2.0
    assert load_task(folder, overrides={"cost": {"gpu_usd_per_hour": 3.5}}).cost.gpu_usd_per_hour == 3.5
