"""What is submitted, in which arrays, with which resources; the ledger. Without Slurm."""

from __future__ import annotations

import dataclasses
import json

import pytest
from experiments import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.dispatch import states
from harness.dispatch.arrays import Turn, arrays, turns
from harness.dispatch.ledger import End, Entry, Ledger, Unit, now
from harness.dispatch.resources import for_slurm, for_this_machine
from harness.dispatch.slurm_programs import Cluster, Partition, _partitions, minutes_of
from harness.dispatch.states import Seen, standings
from harness.dispatch.units import plan
from harness.errors import ConfigError, UserError
from harness.runs import Workspace, bound_runs, fit_runs, student_runs
from harness.specs import Runtime, Submission

TASKS = [{"task": "classification", "options": {"steps": 5}}]
FIT = {"fit": {"training": {"steps": 4, "batch_size": 8}}}


def entry(unit: Unit, **changes) -> Entry:
    return Entry(
        **{
            "unit": unit,
            "cluster": "slurm",
            "folder": "jobs/submitit/x",
            "snapshot": "s",
            "submitted": now(),
            **changes,
        }
    )


def units_of(experiment, workspace, live=(), failed=()):
    kept = [{unit.id: entry(unit) for unit in some} for some in (live, failed)]
    return plan(experiment, Workspace(workspace), *kept)


# The ledger


def test_an_entry_comes_back_as_it_was_written_and_attempts_stay_readable(tmp_path):
    ledger = Ledger(Workspace(tmp_path))
    first = entry(
        Unit("train-a", "train", ("r",), ("fitnet seed 0",), "e", ("fit-b",)), job="1_2", resources={"gpus": 1}
    )
    ledger.write(first)
    assert ledger.entries() == {"train-a": first}
    ledger.set_aside(first)
    assert ledger.entries() == {} and ledger.attempts("train-a") == [first]
    second = dataclasses.replace(first, attempt=2, job=None)
    ledger.write(second)
    assert ledger.entries() == {"train-a": second} and ledger.attempts("train-a") == [first]


def test_the_end_of_a_job_is_known_until_it_begins_again(tmp_path):
    ledger, one = Ledger(Workspace(tmp_path)), entry(Unit("train-a", "train", ("r",), ("t",), "e"))
    end = End("stopped", now(), "stopped by SIGTERM")
    ledger.write_end("train-a", 1, end)
    assert ledger.end(one) == end and ledger.end(dataclasses.replace(one, attempt=2)) is None
    ledger.begin("train-a", 1)
    assert ledger.end(one) is None
    assert ledger.entries() == {}  # ends are no entries


@pytest.mark.parametrize("text", ["{", "[]", '{"unit": 1}'])
def test_a_damaged_entry_is_named(text, tmp_path):
    ledger = Ledger(Workspace(tmp_path))
    ledger.write(entry(Unit("train-a", "train", ("r",), ("t",), "e")))
    (tmp_path / "jobs" / "train-a.json").write_text(text)
    with pytest.raises(UserError, match=r"train-a\.json is damaged"):
        ledger.entries()


# What is to be submitted


def test_teachers_come_first_then_groups_then_an_evaluation_for_every_encoder(tmp_path):
    experiment = tiny(tmp_path, teacher=FIT, tasks=TASKS, bounds=True, runtime={"max_group": 2})
    found = units_of(experiment, tmp_path / "w").units
    assert [unit.kind for unit in found] == ["fit"] + ["train"] * 2 + ["evaluate"] * 5
    (fit,) = fit_runs(experiment)
    assert found[0].id == f"fit-{fit.id}" and {unit.needs for unit in found[1:3]} == {(f"fit-{fit.id}",)}
    needs = {unit.runs[0]: unit.needs for unit in found if unit.kind == "evaluate"}
    for training in found[1:3]:
        assert all(needs[run] == (training.id,) for run in training.runs)
    assert all(needs[run.id] == (f"fit-{fit.id}",) for run in bound_runs(experiment))
    assert sorted(run for unit in found[1:3] for run in unit.runs) == sorted(r.id for r in student_runs(experiment))


def test_submitting_twice_submits_nothing_twice(tmp_path):
    experiment = tiny(tmp_path, teacher=FIT, tasks=TASKS, bounds=True)
    first = units_of(experiment, tmp_path / "w").units
    assert first and units_of(experiment, tmp_path / "w", live=first).units == ()


def test_an_experiment_that_grew_submits_what_is_new(tmp_path):
    small = tiny(tmp_path, methods=["none"], tasks=TASKS)
    first = units_of(small, tmp_path / "w").units
    grown = tiny(tmp_path, methods=["none", "fitnet"], tasks=[*TASKS, "artifacts"])
    found = units_of(grown, tmp_path / "w", live=first).units
    none, fitnet = student_runs(grown)
    training, again, evaluation = found
    assert training.runs == (fitnet.id,)
    assert again.runs == (none.id,) and len(again.tasks) == 1 and again.id != first[1].id
    assert again.needs == (first[0].id,)  # the training that is under way already
    assert evaluation.runs == (fitnet.id,) and len(evaluation.tasks) == 2 and evaluation.needs == (training.id,)


def test_an_edit_of_the_code_submits_no_evaluation_again(tmp_path, monkeypatch):
    experiment = tiny(tmp_path, tasks=TASKS)
    first = units_of(experiment, tmp_path / "w").units
    monkeypatch.setattr("harness.runs.protocol_code", lambda: "other code")
    assert units_of(experiment, tmp_path / "w", live=first).units == ()


def test_what_failed_is_held_back_with_all_that_needs_it(tmp_path):
    experiment = tiny(tmp_path, teacher=FIT, tasks=TASKS, bounds=True)
    fit, *rest = units_of(experiment, tmp_path / "w").units
    found = units_of(experiment, tmp_path / "w", failed=[fit])
    assert found.failed == (fit,) and found.units == ()
    training = rest[0]
    found = units_of(experiment, tmp_path / "w", live=[fit], failed=[training])
    assert found.failed == (training,)
    assert {run for unit in found.units for run in unit.runs} == {run.id for run in bound_runs(experiment)}


def test_a_diverged_run_is_neither_trained_nor_evaluated_again(tmp_path):
    experiment = tiny(tmp_path, methods=["none", "fitnet"], tasks=TASKS)
    none, fitnet = student_runs(experiment)
    (tmp_path / "w" / "failures").mkdir(parents=True)
    (tmp_path / "w" / "failures" / f"{none.id}.json").write_text('{"reason": "the loss is not finite", "step": 3}')
    assert {run for unit in units_of(experiment, tmp_path / "w").units for run in unit.runs} == {fitnet.id}


def test_submission_settings_are_in_no_identity(tmp_path):
    plain, asked = tiny(tmp_path), tiny(tmp_path, submit={"gpus": 2, "minutes": 30, "partition": "main"})
    assert asked.submit.gpus == 2
    assert [run.id for run in student_runs(plain)] == [run.id for run in student_runs(asked)]


# Arrays


def drawn(sizes, fitted: bool, data) -> list[Unit]:
    """Groups of these sizes, with a teacher's own training or without; not every student is still to be evaluated."""
    needs = ("fit-t",) if fitted else ()
    units = [Unit("fit-t", "fit", ("t",), ("t",), "e")] * fitted
    for number, size in enumerate(sizes):
        runs = tuple(f"r{number}-{j}" for j in range(size))
        units.append(Unit(f"train-{number}", "train", runs, runs, "e", needs))
        left = [run for run in runs if data.draw(st.integers(0, 4))]
        units += [Unit(f"evaluate-{run}", "evaluate", (run,), (run,), "e", (f"train-{number}",)) for run in left]
    return [*units, Unit("evaluate-t", "evaluate", ("t",), ("t",), "e", needs)]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(1, 6), st.booleans(), st.data())
@settings(max_examples=200, deadline=None)
def test_every_unit_is_in_one_array_behind_all_that_it_waits_for(sizes, longest, fitted, data):
    units = drawn(sizes, fitted, data)
    found, done = arrays(units, longest), []
    assert sorted(unit.id for array in found for unit in array.units) == sorted(unit.id for unit in units)
    at = {}
    for array in found:
        assert len(array.units) <= longest and len({unit.kind for unit in array.units}) == 1
        for index, unit in enumerate(array.units):
            at[unit.id] = (array, index)
            assert set(unit.needs) <= set(done)
            if array.follows:
                training, place = at[unit.needs[0]]
                assert place == index and len(training.units) > 1 and array.follows[index] == unit.needs[0]
                assert training is at[array.follows[0]][0]
            else:
                assert array.needs == unit.needs
        done += [unit.id for unit in array.units]


def test_students_of_equal_groups_are_evaluated_by_one_array_for_each_place_in_a_group():
    units = [Unit(f"train-{g}", "train", (f"{g}a", f"{g}b"), ("", ""), "e") for g in range(3)]
    units += [Unit(f"evaluate-{r}", "evaluate", (r,), ("",), "e", (u.id,)) for u in units for r in u.runs]
    training, *evaluations = arrays(units, 100)
    assert [len(array.units) for array in (training, *evaluations)] == [3, 3, 3]
    assert all(array.follows == tuple(unit.id for unit in training.units) for array in evaluations)


def test_larger_groups_come_first_so_that_evaluations_stay_together():
    units = [Unit(f"train-{g}", "train", tuple(f"{g}{j}" for j in range(g)), ("",) * g, "e") for g in (1, 3, 2)]
    units += [Unit(f"evaluate-{r}", "evaluate", (r,), ("",), "e", (u.id,)) for u in units for r in u.runs]
    assert [len(array.units) for array in arrays(units, 100)] == [3, 3, 2, 1]


@given(st.lists(st.integers(1, 5), max_size=8), st.integers(1, 4), st.booleans(), st.integers(1, 12), st.data())
@settings(max_examples=200, deadline=None)
def test_never_more_jobs_than_are_asked_for_run_at_once(sizes, longest, fitted, max_jobs, data):
    planned = arrays(drawn(sizes, fitted, data), longest)
    found = turns(planned, max_jobs)
    behind = [turn.after for turn in found if turn.after is not None]
    assert len(behind) == len(set(behind))  # one array behind another is a queue, of which one array runs at a time
    assert all(turn.after is None or turn.after < position for position, turn in enumerate(found))
    queues = {position: [found[position].at_once] for position, turn in enumerate(found) if turn.after is None}
    for position, turn in enumerate(found):
        if turn.after is not None:
            first = turn.after
            while (before := found[first].after) is not None:
                first = before
            queues[first].append(found[position].at_once)
    assert all(width is not None and width >= 1 for widths in queues.values() for width in widths)
    assert sum(max(widths) for widths in queues.values()) <= max_jobs


def test_evaluations_have_a_share_of_the_bound_while_trainings_go_on_and_all_of_it_afterwards():
    units = [Unit("fit-t", "fit", ("t",), ("",), "e"), Unit("evaluate-t", "evaluate", ("t",), ("",), "e", ("fit-t",))]
    for g in range(8):
        runs = tuple(f"{g}{j}" for j in range(5))
        units.append(Unit(f"train-{g}", "train", runs, ("",) * 5, "e", ("fit-t",)))
        units += [Unit(f"evaluate-{run}", "evaluate", (run,), ("",), "e", (f"train-{g}",)) for run in runs]
    planned = arrays(units, 100)
    assert [(array.kind, len(array.units)) for array in planned[:3]] == [("fit", 1), ("train", 8), ("evaluate", 1)]
    found = turns(planned, 8)
    assert found[:4] == [Turn(6), Turn(6, 0), Turn(2), Turn(2, 2)]  # two evaluate what is there, six train
    assert {(turn.at_once, turn.after) for turn in found[4:]} == {(6, 1), (6, 4), (2, 3), (6, 5)}
    assert turns(planned, 1) == [Turn(1), *(Turn(1, position) for position in range(len(planned) - 1))]
    assert turns(planned, None) == [Turn()] * len(planned)
    assert turns(planned[:2], 8) == [Turn(8), Turn(8, 0)]


# Resources

CLUSTER = Cluster(
    {
        "gpu": Partition("gpu", True, 120, 4, 16, 64, 2),
        "cpu": Partition("cpu", False, None, 10, 4, 16, 0),
    },
    ("lab", "guests"),
    ("normal", "high"),
    1001,
)


def test_every_mistake_is_told_at_once_with_the_nearest_name():
    asked = Submission(
        partition="gpus", account="labs", qos="hihg", minutes=500, gpus=3, cpus=9, memory_gb=100.0, nodes=5
    )
    with pytest.raises(ConfigError) as error:
        for_slurm(asked, Runtime(), CLUSTER)
    assert len(error.value.mistakes) == 3 and "did you mean 'gpu'?" in str(error.value)
    with pytest.raises(ConfigError) as error:
        for_slurm(asked.model_copy(update={"partition": None}), Runtime(), CLUSTER)
    said = "\n".join(error.value.mistakes)
    assert len(error.value.mistakes) == 7
    for part in (
        "'lab'",
        "'high'",
        "minutes is 500",
        "may take 120",
        "gpus is 3",
        "cpus times ranks is 27",
        "100",
        "nodes is 5",
    ):
        assert part in said, part


def test_what_is_not_asked_for_is_told_by_the_cluster():
    found = for_slurm(Submission(), Runtime(), CLUSTER)
    assert (found.gpus, found.ranks, found.cpus, found.minutes) == (1, 1, 3, 120)
    found = for_slurm(Submission(partition="cpu", ranks=2), Runtime(), CLUSTER)
    assert (found.gpus, found.ranks, found.cpus, found.minutes) == (0, 2, 2, 240)
    assert for_slurm(Submission(), Runtime(device="cpu"), CLUSTER).gpus == 0
    assert for_slurm(Submission(gpus=2), Runtime(), CLUSTER).ranks == 2


def test_names_are_not_checked_where_the_cluster_does_not_say():
    unknown = dataclasses.replace(CLUSTER, accounts=None, qos=None)
    assert for_slurm(Submission(account="who", qos="what"), Runtime(), unknown).account == "who"


def test_this_machine_is_one_node():
    with pytest.raises(ConfigError, match="nodes is 2"):
        for_this_machine(Submission(nodes=2), Runtime(), 0)
    assert for_this_machine(Submission(), Runtime(), 2).gpus == 1
    assert for_this_machine(Submission(), Runtime(), 0).gpus == 0
    assert for_this_machine(Submission(gpu_memory_gb=4.0), Runtime(), 2).gpus == 0


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("infinite", None), ("n/a", None), ("30:00", 30), ("1:30:00", 90), ("2-12:00:00", 3600), ("1-00:00:00", 1440)],
)
def test_time_limits_of_slurm(text, minutes):
    assert minutes_of(text) == minutes


def test_a_partition_of_unlike_nodes_is_told_by_its_largest():
    lines = [
        "main*|1:00:00|2|8|16000|gpu:a100:4(S:0-1)",
        "main*|1:00:00|3|16+|32768|(null)",
        "rest|infinite|1|1|1024|gpu:2",
    ]
    assert _partitions(lines) == {
        "main": Partition("main", True, 60, 5, 16, 32.0, 4),
        "rest": Partition("rest", False, None, 1, 1, 1.0, 2),
    }


# What has become of it


@pytest.mark.parametrize(
    ("seen", "end", "state"),
    [
        (None, None, "lost"),
        (None, End("failed", "", "no data"), "failed"),
        (None, End("stopped", "", "stopped by SIGTERM"), "lost"),
        (Seen("7", "PENDING", "Resources"), None, "queued"),
        (Seen("7", "PENDING", "Dependency"), None, "waiting"),
        (Seen("7", "PENDING", "BeginTime", restarts=1), End("stopped", "", "x"), "requeued"),
        (Seen("7", "RUNNING"), None, "running"),
        (Seen("7", "COMPLETING"), None, "running"),
        (Seen("7", "COMPLETED"), None, "lost"),
        (Seen("7", "FAILED"), None, "failed"),
        (Seen("7", "FAILED"), End("stopped", "", "too often"), "lost"),
        (Seen("7", "FAILED", signalled=True), None, "lost"),
        (Seen("7", "NODE_FAIL"), None, "lost"),
        (Seen("7", "TIMEOUT"), None, "lost"),
        (Seen("7", "CANCELLED"), End("failed", "", "x"), "cancelled"),
    ],
)
def test_the_state_of_a_job_that_has_left_something_undone(seen, end, state, tmp_path):
    workspace, one = Workspace(tmp_path), entry(Unit("train-a", "train", ("r",), ("t",), "e"), job="7")
    if end is not None:
        Ledger(workspace).write_end("train-a", 1, end)
    found = standings(workspace, {"train-a": one}, {} if seen is None else {"train-a": seen})["train-a"]
    assert found.state == state
    assert (found.reason is None) == (state in ("queued", "waiting", "requeued", "running"))


def test_the_workspace_decides_what_is_done_whatever_slurm_says(tmp_path):
    workspace = Workspace(tmp_path)
    training = entry(Unit("train-a", "train", ("r", "s"), ("one", "two"), "e"), job="7")
    evaluation = entry(Unit("evaluate-r", "evaluate", ("r",), ("one",), "e", ("train-a",), ("k",)), job="8")
    entries = {"train-a": training, "evaluate-r": evaluation}

    def look(seen: str) -> list[str]:
        told = standings(workspace, entries, {i: Seen("7", seen) for i in entries})
        return [told[i].state for i in entries]

    assert look("RUNNING") == ["running", "running"]
    (tmp_path / "students" / "r").mkdir(parents=True)
    (tmp_path / "students" / "s.partial").mkdir()
    assert look("TIMEOUT") == ["lost", "lost"]
    (tmp_path / "students" / "s").mkdir()
    (tmp_path / "protocols").mkdir()
    (tmp_path / "protocols" / "k.json").write_text(json.dumps({"task_id": "t"}))
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "r.t.json").write_text("")
    assert look("TIMEOUT") == ["done", "done"]


def test_a_failed_method_fails_its_training_and_leaves_nothing_to_evaluate(tmp_path):
    workspace = Workspace(tmp_path)
    entries = {
        "train-a": entry(Unit("train-a", "train", ("r",), ("fitnet seed 0",), "e"), job="7"),
        "evaluate-r": entry(
            Unit("evaluate-r", "evaluate", ("r",), ("fitnet seed 0",), "e", ("train-a",), ("k",)), job="8"
        ),
    }
    (tmp_path / "failures").mkdir()
    (tmp_path / "failures" / "r.json").write_text('{"reason": "the loss is not finite", "step": 3}')
    told = standings(workspace, entries, {i: Seen("7", "COMPLETED") for i in entries})
    assert told["train-a"].state == "failed" and told["evaluate-r"].state == "done"
    assert told["train-a"].reason == "fitnet seed 0 at step 3: the loss is not finite"


def test_a_local_job_whose_process_is_gone_is_lost(tmp_path, monkeypatch):
    running = {
        "cluster": "local",
        "state": "running",
        "pid": 10**7,
        "started": "1",
        "host": states.socket.gethostname(),
    }
    one = entry(Unit("train-a", "train", ("r",), ("t",), "e"), **running)
    assert standings(Workspace(tmp_path), {"train-a": one}, {})["train-a"].state == "lost"
    elsewhere = dataclasses.replace(one, host="another")
    assert standings(Workspace(tmp_path), {"train-a": elsewhere}, {})["train-a"].state == "running"
    queued = dataclasses.replace(
        one, state="queued", unit=dataclasses.replace(one.unit, id="evaluate-r", needs=("train-a",))
    )
    told = standings(Workspace(tmp_path), {"train-a": elsewhere, "evaluate-r": queued}, {})
    assert told["evaluate-r"].state == "waiting"
