"""Others' results beside one's own: all or nothing, whoever is right, and again after an interruption."""

# ruff: noqa: F401, F811 - fixtures are imported
from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from publications import (
    PATH,
    claimed,
    contents,
    filled,
    first_record,
    items_of,
    lab,
    named,
    published,
    resealed,
    with_items,
)
from test_cli import call
from test_leaderboard import record, seeds

from harness.asked import asked_for
from harness.errors import ConfigError, UserError
from harness.records import ItemsInfo, items_name, read_records
from harness.runs import Workspace
from leaderboard.publishing import merging
from leaderboard.publishing.contents import record_name
from leaderboard.publishing.merging import difference, merge
from leaderboard.publishing.verifying import verify
from leaderboard.write import load


def names(workspace: Path) -> set[str]:
    return {path.name for path in (workspace / "records").iterdir()}


def test_two_labs_publish_verify_and_merge_from_the_command_line(call, tmp_path):
    one = lab(tmp_path / "one", "fitnet", "singer")
    other = lab(tmp_path / "other", "logit_kd", condition="c0ffee00")
    for place in (one, other):
        (place / "experiments" / f"{place.name}.yaml").unlink()
    for place, output in ((one, tmp_path / "one.zip"), (other, tmp_path / "other-out")):
        code, out, _ = call("publish", place, "-o", output)
        assert code == 0 and "fingerprint" in out
        code, out, _ = call("verify", output)
        assert code == 0 and "all hold" in out and "page/ holds scripts" in out
    union = tmp_path / "union"
    code, out, _ = call("merge", tmp_path / "one.zip", tmp_path / "other-out", "--into", union)
    assert code == 0 and "16 records merged, 0 were there already" in out
    _, out, _ = call("table", union)
    assert all(label in out for label in ("fitnet", "singer", "logit_kd"))
    path = first_record(tmp_path / "other-out")
    resealed(path, lambda plain: plain["values"].update(top1=0.99))
    code, out, err = call("verify", tmp_path / "other-out")
    assert code == 1 and f"FAIL  records/{path.name}: " in out and not err
    before = contents(union)
    code, out, err = call("merge", tmp_path / "other-out", "--into", union)
    assert code == 2 and f"records/{path.name}" in err and "nothing is merged" in err
    assert contents(union) == before
    code, _, err = call("verify", tmp_path / "nowhere")
    assert code == 2 and "no publication" in err


def test_merging_again_changes_nothing(tmp_path):
    one = lab(tmp_path / "one", "fitnet")
    published(one, tmp_path / "one.zip")
    merge([tmp_path / "one.zip"], tmp_path / "union")
    before = contents(tmp_path / "union")
    done = merge([tmp_path / "one.zip", tmp_path / "one.zip"], tmp_path / "union")
    assert (done.new, done.same) == ((), 6) and contents(tmp_path / "union") == before


def test_where_each_record_came_from_is_kept_over_several_hands(tmp_path):
    one, other = lab(tmp_path / "one", "fitnet"), lab(tmp_path / "other", "singer")
    first = published(one, tmp_path / "one.zip")
    merge([tmp_path / "one.zip"], other)
    told = json.loads((other / "merged.json").read_text())
    assert told["sources"] == {first.fingerprint[:16]: {"name": "one.zip", "kind": "publication"}}
    assert set(told["records"]) == names(one) - names(lab(tmp_path / "third", "singer"))
    published(other, tmp_path / "both.zip")
    assert not verify(tmp_path / "both.zip").faults
    merge([tmp_path / "both.zip"], tmp_path / "union")
    told = json.loads((tmp_path / "union" / "merged.json").read_text())
    assert {source["name"] for source in told["sources"].values()} == {"one.zip", "both.zip"}
    fitnet = {r for r in names(one) if "fitnet" in (one / "records" / r).read_text()}
    assert {told["records"][name] for name in fitnet} == {first.fingerprint[:16]}
    merged = tmp_path / "union" / "merged"
    assert (merged / first.fingerprint[:16] / "experiments" / "one.yaml").is_file()


def test_a_workspace_is_merged_as_a_publication_is(tmp_path):
    one = lab(tmp_path / "one", "fitnet")
    done = merge([one], tmp_path / "union")
    assert len(done.new) == 6 and names(tmp_path / "union") == names(one)
    published(tmp_path / "union", tmp_path / "out")
    for name, data in contents(tmp_path / "out").items():
        assert PATH.encode() not in data, name


def test_sections_of_different_conditions_stay_apart(tmp_path):
    one, other = lab(tmp_path / "one", "fitnet"), lab(tmp_path / "other", "fitnet", condition="decaf000")
    merge([one, other], tmp_path / "union")
    assert len(load(tmp_path / "union").sections) == 2
    assert [s.rows for s in load(one).sections] == [s.rows for s in load(tmp_path / "union").sections[:1]]


def test_every_conflict_is_named_at_once_and_nothing_is_written(tmp_path):
    one, other = lab(tmp_path / "one", "fitnet", "singer"), lab(tmp_path / "other", "fitnet", "later", shift=0.1)
    before = contents(one)
    with pytest.raises(ConfigError) as error:
        merge([other], one)
    assert str(error.value).startswith("nothing is merged")
    apart = [r for r in read_records(other / "records")[0] if r.run.label == "fitnet" and r.seed == 0]
    conflicts = [r for r in apart if r.task == "cls"]
    assert len(conflicts) == 1 and all(record_name(r) in str(error.value) for r in conflicts)
    assert "values.top1 is 0.5 in" in str(error.value) and "and 0.6 in other" in str(error.value)
    assert contents(one) == before


def test_sources_that_contradict_one_another_are_refused_before_there_is_a_workspace(tmp_path):
    one, other = lab(tmp_path / "one", "fitnet"), lab(tmp_path / "other", "fitnet", shift=0.1)
    with pytest.raises(ConfigError, match=r"in one and 0\.6 in other"):
        merge([one, other], tmp_path / "union")
    assert not (tmp_path / "union").exists()


def test_every_source_that_cannot_be_trusted_is_named_at_once(tmp_path):
    one, other = lab(tmp_path / "one", "fitnet"), lab(tmp_path / "other", "singer")
    published(one, tmp_path / "one.zip")
    data = (tmp_path / "one.zip").read_bytes()
    (tmp_path / "one.zip").write_bytes(data[: len(data) // 2])
    path = first_record(other)
    path.write_text(path.read_text().replace("0.", "1.", 1))
    with pytest.raises(ConfigError) as error:
        merge([tmp_path / "one.zip", other], tmp_path / "union")
    assert "one.zip: the zip is cut short" in str(error.value) and path.name in str(error.value)
    assert not (tmp_path / "union").exists()


def test_the_same_values_measured_elsewhere_are_one_record_and_the_first_stays(tmp_path):
    mine = named(record("fitnet", own_s=1.0))
    theirs = mine.model_copy(
        update={"cost": mine.cost.model_copy(update={"own_s": 9.0}), "created": "later", "environment": {"gpu": "x"}}
    )
    one, other = filled(tmp_path / "one", [mine]), filled(tmp_path / "other", [theirs])
    before = contents(one / "records")
    assert merge([other], one).same == 1
    assert contents(one / "records") == before


@pytest.mark.parametrize(
    ("field", "value", "place"),
    [
        ("values", {"top1": 0.5, "top5": 0.9}, "values.top5"),
        ("details", {"a": [1]}, "details.a"),
        ("seed", 5, "seed"),
        ("origin", "reported", "origin"),
    ],
)
def test_what_is_measured_may_not_differ(field, value, place):
    mine = named(record("fitnet"))
    found = difference(mine, mine.model_copy(update={field: value}))
    assert found is not None and found[0] == place


def test_a_record_whose_paths_were_taken_out_is_the_one_they_were_in(tmp_path):
    one = filled(tmp_path / "one", [named(record("fitnet"), data={"options": {"labels": f"{PATH}/x"}})])
    published(one, tmp_path / "one.zip")
    assert merge([tmp_path / "one.zip"], one).same == 1
    merge([tmp_path / "one.zip"], tmp_path / "union")
    assert merge([one], tmp_path / "union").same == 1
    published(tmp_path / "union", tmp_path / "again.zip")
    assert not verify(tmp_path / "again.zip").faults


def test_a_damaged_record_of_ones_own_is_not_written_over(tmp_path):
    one, other = lab(tmp_path / "one", "fitnet"), lab(tmp_path / "other", "fitnet")
    path = first_record(one)
    path.write_text("{")
    with pytest.raises(ConfigError, match=f"{path.name}: the one in .* is damaged"):
        merge([other], one)
    assert path.read_text() == "{"


def test_a_folder_of_something_else_is_no_workspace(tmp_path):
    one = lab(tmp_path / "one", "fitnet")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / ".hidden").write_text("x")
    merge([one], tmp_path / "there")  # all but empty
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("x")
    with pytest.raises(UserError, match=r"photos' is no workspace, and there is 'cat\.png' in it"):
        merge([one], tmp_path / "photos")
    with pytest.raises(UserError, match=r"cannot be made, since '.*cat\.png' is a file; name another place"):
        merge([one], tmp_path / "photos" / "cat.png" / "a" / "b")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.png"]


def test_a_publication_that_lost_its_manifest_is_not_taken_for_a_workspace(tmp_path):
    published(lab(tmp_path / "one", "fitnet"), tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"out: manifest\.json: missing"):
        merge([tmp_path / "out"], tmp_path / "union")
    assert not (tmp_path / "union").exists()


def test_a_record_that_comes_meanwhile_is_compared_and_not_written_over(tmp_path, monkeypatch):
    """As where a run goes on in the workspace."""
    one, other = lab(tmp_path / "one", "fitnet"), lab(tmp_path / "other", "fitnet", shift=0.1)
    real = merging._kept

    def later(*args):
        real(*args)
        shutil.copytree(other / "records", tmp_path / "union" / "records")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="the same command compares it"):
        patch.setattr(merging, "_kept", later)
        merge([one], tmp_path / "union")
    assert contents(tmp_path / "union" / "records") == contents(other / "records")
    with pytest.raises(ConfigError, match=r"values\.top1 is 0\.6 in .*union and 0\.5 in one"):
        merge([one], tmp_path / "union")


def test_what_a_source_says_of_another_one_replaces_nothing(tmp_path):
    """Somebody claims that his record and his configuration are of a source that is known here already."""
    first = published(lab(tmp_path / "one", "fitnet"), tmp_path / "one.zip").fingerprint[:16]
    merge([tmp_path / "one.zip"], tmp_path / "union")
    theirs = lab(tmp_path / "theirs", "singer")
    names_of_theirs = sorted(names(theirs))
    told = {"sources": {first: {"name": "lies", "kind": "publication"}}, "records": {names_of_theirs[0]: first}}
    (theirs / "merged.json").write_text(json.dumps(told))
    lies = theirs / "merged" / first / "experiments" / "one.yaml"
    lies.parent.mkdir(parents=True)
    lies.write_text("name: lies")
    published(theirs, tmp_path / "theirs.zip")
    before = contents(tmp_path / "union" / "merged" / first)
    merge([tmp_path / "theirs.zip"], tmp_path / "union")
    assert contents(tmp_path / "union" / "merged" / first) == before
    told = json.loads((tmp_path / "union" / "merged.json").read_text())
    assert told["sources"][first]["name"] == "one.zip"


def test_items_by_another_rule_are_a_conflict():
    mine = named(record("fitnet"))
    info = ItemsInfo(
        file=items_name(mine.run.id, mine.task_id), sha256="0" * 64, count=2, metrics={"top1": ("mean", "a")}
    )
    one = mine.model_copy(update={"items": info})
    other = mine.model_copy(update={"items": info.model_copy(update={"metrics": {"top1": ("mean", "b")}})})
    found = difference(one, other)
    assert found is not None and found[0] == "items.metrics.top1"
    assert difference(one, mine) is None  # an older program kept none


@pytest.mark.parametrize("kind", ["publication", "file", "nothing"])
def test_places_that_are_none_are_refused(tmp_path, kind):
    one = lab(tmp_path / "one", "fitnet")
    if kind == "publication":
        published(one, tmp_path / "there")
    elif kind == "file":
        (tmp_path / "there").write_text("x")
    with pytest.raises(UserError):
        merge([one if kind != "nothing" else tmp_path / "nowhere"], tmp_path / "there")


def test_items_come_along(tmp_path):
    one = with_items(tmp_path / "one")
    published(one, tmp_path / "one.zip")
    merge([tmp_path / "one.zip"], tmp_path / "union")
    assert items_of(tmp_path / "union").read_bytes() == items_of(one).read_bytes()


class Stopped(BaseException):
    pass


def test_interrupted_at_any_write_the_workspace_is_whole_and_the_same_command_goes_on(tmp_path):
    one = with_items(tmp_path / "one")
    lab(one, "singer")
    published(one, tmp_path / "one.zip")
    merge([tmp_path / "one.zip"], tmp_path / "whole")
    writes = len(contents(tmp_path / "whole"))
    for fail_at in range(writes):
        union = tmp_path / f"union{fail_at}"
        count = 0

        def write(path, data, fail_at=fail_at, real=merging.write_atomic):
            nonlocal count
            count += 1
            if count - 1 == fail_at:
                raise Stopped
            return real(path, data)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(merging, "write_atomic", write)
            with pytest.raises(Stopped):
                merge([tmp_path / "one.zip"], union)
        found, problems = read_records(union / "records")
        assert not problems
        for each in found:  # a record is there only when what it names is
            assert each.items is None or (union / "items" / each.items.file).is_file()
        merge([tmp_path / "one.zip"], union)
        assert contents(union) == contents(tmp_path / "whole")


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    one = lab(tmp_path / "one", "fitnet")

    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(merging, "write_atomic", full)
    with pytest.raises(UserError, match="No space left on device; the same command goes on"):
        merge([one], tmp_path / "union")


def test_students_that_failed_elsewhere_are_said_in_the_tables_of_the_union(call, tmp_path):
    one = lab(tmp_path / "one", "fitnet")
    failed = named(record("vitkd")).run
    published(one, tmp_path / "one.zip", asked=[(failed, "at step 7: loss kd is nan")])
    union = tmp_path / "union"
    merge([tmp_path / "one.zip"], union)
    assert [(run.label, why) for run, why in asked_for(Workspace(union))[0]] == [("vitkd", "at step 7: loss kd is nan")]
    _, out, _ = call("table", union)
    assert "vitkd" in out and "loss kd is nan" in out
    (path,) = (union / "merged").glob("*/asked.json")
    path.write_text("{")
    _, out, _ = call("table", union)
    assert "vitkd" not in out and "is not known" in out


def test_students_that_failed_are_said_in_tables_of_the_publication_and_when_it_is_published_again(call, tmp_path):
    one = lab(tmp_path / "one", "fitnet")
    failed = named(record("vitkd")).run
    published(one, tmp_path / "out", asked=[(failed, "at step 7: loss kd is nan")])
    _, out, _ = call("table", tmp_path / "out")
    assert "vitkd" in out and "loss kd is nan" in out
    call("publish", tmp_path / "out", "-o", tmp_path / "again")
    assert "loss kd is nan" in (tmp_path / "again" / "tables" / "leaderboard.md").read_text()


def test_a_source_that_brings_failures_alone_is_kept(call, tmp_path):
    one = lab(tmp_path / "one", "fitnet")
    failed = named(record("vitkd")).run
    published(one, tmp_path / "one.zip", asked=[(failed, "at step 7: loss kd is nan")])
    (one / "experiments" / "one.yaml").unlink()
    code, out, _ = call("merge", tmp_path / "one.zip", "--into", one)
    assert code == 0 and "0 records merged, 6 were there already" in out
    _, out, _ = call("table", one)
    assert "vitkd" in out and "loss kd is nan" in out
    before = contents(one)
    call("merge", tmp_path / "one.zip", "--into", one)
    assert contents(one) == before


def test_a_source_that_brings_nothing_leaves_nothing(call, tmp_path):
    one = lab(tmp_path / "one", "fitnet")
    published(one, tmp_path / "one.zip")
    before = contents(one)
    call("merge", tmp_path / "one.zip", "--into", one)
    assert contents(one) == before
