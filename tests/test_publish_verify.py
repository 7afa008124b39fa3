"""`verify` finds whatever was done to a publication, and says to which record; nothing it reads can do harm."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import zipfile
from pathlib import Path

import pytest
from publications import (
    claimed,
    contents,
    filled,
    first_record,
    items_of,
    lab,
    named,
    published,
    resealed,
    rezipped,
    with_items,
)
from test_leaderboard import record, seeds

from harness.errors import UserError
from leaderboard.publishing import archive, verifying
from leaderboard.publishing import contents as contents_of
from leaderboard.publishing.verifying import verify


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    published(lab(folder / "ours", "fitnet", "singer"), folder / "out")
    return folder / "out"


@pytest.fixture
def out(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "out")


@pytest.fixture
def packed(tmp_path) -> Path:
    published(lab(tmp_path / "ours", "fitnet", "singer"), tmp_path / "out.zip")
    return tmp_path / "out.zip"


def value(number: float):
    def change(plain):
        plain["values"][next(iter(plain["values"]))] = number

    return change


def test_what_was_published_holds(out):
    found = verify(out)
    assert not found.faults and not found.notes and len(found.records) == 11


def test_a_value_changed_as_text_breaks_the_records_seal(out):
    path = first_record(out)
    path.write_text(path.read_text().replace('"values": {\n', '"values": {\n ', 1))
    faults = verify(out).faults
    assert {fault.split(":")[0] for fault in faults} == {f"records/{path.name}"}
    assert any("checksum is not that of its content" in fault for fault in faults)


def test_any_file_of_the_same_size_that_was_changed_is_named(out):
    (path,) = (out / "experiments").iterdir()
    path.write_text(path.read_text().replace("imagenet", "imagenot"))
    assert verify(out).faults == (f"experiments/{path.name}: changed, its checksum is not the manifest's",)


def test_a_value_changed_and_sealed_anew_is_not_what_the_manifest_says(out):
    name = resealed(first_record(out), value(0.99))
    (fault,) = verify(out).faults
    assert fault.startswith(f"{name}: ") and "manifest" in fault


def test_a_value_changed_sealed_and_claimed_in_the_manifest_is_not_what_the_tables_say(out):
    resealed(first_record(out), value(0.99))
    claimed(out)
    assert [fault.split(":")[1] for fault in verify(out).faults] == [" not the table of these records"] * 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plain: plain["run"]["spec"].update(method="another"), "its run id is not the hash"),
        (lambda plain: plain["run"].update(seed=7), "its seed is 7"),
        (lambda plain: plain["run"].update(hyperparameters={"rank": 1}), "its hyperparameters are not those"),
        (lambda plain: plain["protocol"].update(images=5), "its task id is not the hash"),
        (lambda plain: plain.update(task_id="another"), "the name does not fit"),
        (lambda plain: plain.update(more=1), "Extra inputs are not permitted"),
        (lambda plain: plain["values"].update(top1=1e300), "a metric is a finite number"),
        (lambda plain: plain.update(schema_version=99), "newer than this program's"),
    ],
)
def test_what_was_changed_sealed_and_claimed_is_told_by_what_no_longer_fits(out, change, said):
    name = resealed(first_record(out), change)
    claimed(out)
    (fault,) = verify(out).faults
    assert fault.startswith(f"{name}: ") and said in fault


def test_a_record_without_a_seal_is_none(out):
    path = first_record(out)
    plain = json.loads(path.read_text())
    del plain["sha256"], plain["items"]
    path.write_text(json.dumps({**plain, "schema_version": 1}))
    claimed(out)
    assert verify(out).faults == (f"records/{path.name}: it has no checksum of its own",)


def test_a_record_nested_without_end_is_none(out):
    path = first_record(out)
    path.write_text('{"schema_version": 1, "a": ' + "[" * 200_000)
    claimed(out)
    (fault,) = verify(out).faults
    assert fault.startswith(f"records/{path.name}: ")


def test_a_record_that_is_too_large_is_not_read(out, monkeypatch):
    monkeypatch.setattr(verifying, "MOST_RECORD", 100)
    assert all("too large for a record" in fault for fault in verify(out).faults)


def test_what_is_missing_added_or_renamed_is_named(out):
    names = sorted(p.name for p in (out / "records").iterdir())
    (out / "records" / names[0]).unlink()
    (out / "records" / names[1]).rename(out / "records" / "other.name.json")
    (out / "added.txt").write_text("added")
    faults = verify(out).faults
    assert f"records/{names[0]}: missing" in faults and f"records/{names[1]}: missing" in faults
    assert "added.txt: not in the manifest, so it was added" in faults
    assert any(f.startswith("records/other.name.json: the name does not fit what is in it") for f in faults)


def test_a_record_left_out_of_the_manifest_too_is_missed_by_the_summary(out):
    first_record(out).unlink()
    claimed(out)
    assert verify(out).faults == ("manifest.json: its summary is not that of the records",)


def test_a_place_without_a_path_taken_out_is_not_claimed(out):
    claimed(out, removed={f"records/{first_record(out).name}": ["run.spec.data"]})
    assert len(verify(out).faults) == 1 and "the places where it says" in verify(out).faults[0]


def test_a_path_taken_out_of_a_file_that_is_not_there_is_not_claimed(out):
    claimed(out, removed={"experiments/other.yaml": ["data.root"]})
    assert verify(out).faults == (
        "manifest.json: a path was taken out of experiments/other.yaml, and there is no such file",
    )


@pytest.fixture
def measured(tmp_path) -> Path:
    published(with_items(tmp_path / "ours"), tmp_path / "out")
    return tmp_path / "out"


def sealed_items(out: Path, data: bytes) -> str:
    items_of(out).write_bytes(data)
    seal = hashlib.sha256(data).hexdigest()
    return resealed(first_record(out), lambda plain: plain["items"].update(sha256=seal))


def test_a_value_for_which_all_but_its_items_was_made_anew_is_found(tmp_path, monkeypatch):
    ours = with_items(tmp_path / "ours")
    resealed(first_record(ours), lambda plain: plain["values"].update(top1=0.75))
    with monkeypatch.context() as patch:  # the program of somebody who tampers does not look
        patch.setattr(contents_of, "items_fault", lambda *_: None)
        published(ours, tmp_path / "out.zip")
    (fault,) = verify(tmp_path / "out.zip").faults
    assert fault.startswith("records/") and "values.top1 is 0.75, and items/" in fault and fault.endswith("0.5 of it")


def test_rounding_is_no_fault(tmp_path):
    ours = with_items(tmp_path / "ours")
    resealed(first_record(ours), lambda plain: plain["values"].update(top1=0.5 + 1e-6))
    published(ours, tmp_path / "out")
    assert not verify(tmp_path / "out").faults


def test_items_that_were_changed_and_sealed_anew_do_not_make_the_value(measured):
    data = bytearray(items_of(measured).read_bytes())
    data[-1] = 0xFF  # both right
    name = sealed_items(measured, bytes(data))
    claimed(measured)
    (fault,) = verify(measured).faults
    assert fault.startswith(f"{name}: its values.top1 is 0.5") and "makes 1 of it" in fault


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, "numpy has no type 'BF16'"),
        ({"right": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}, "has shape ()"),
        ({"right": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "1 items, and the record says 2"),
        ({"right": {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]}}, "is int32"),
        ({"other": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "there are other"),
        ({"right": {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 4]}}, "not a safetensors file"),
    ],
)
def test_items_that_are_none_are_one_sentence(measured, header, said):
    text = json.dumps(header).encode()
    name = sealed_items(measured, len(text).to_bytes(8, "little") + text + bytes(4))
    claimed(measured)
    (fault,) = verify(measured).faults
    assert fault.startswith(f"{name}: items/") and said in fault


def test_items_that_are_too_large_are_not_read(measured, monkeypatch):
    monkeypatch.setattr(contents_of, "MOST_ITEMS", 10)
    (fault,) = verify(measured).faults
    assert "too large" in fault


def test_items_that_are_missing_or_a_link_are_the_record_s_fault_too(measured, tmp_path):
    path = items_of(measured)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    name = f"items/{path.name}"
    assert verify(measured).faults == (f"{name}: a link",)
    said = json.loads((measured / "manifest.json").read_text())["files"]
    del said[name]
    path.unlink()
    claimed(measured, files=said)
    assert verify(measured).faults == (f"records/{first_record(measured).name}: {name}, which it names, is missing",)


@pytest.mark.parametrize(("text", "said"), [("a: [", "expected"), ("- a", "it is no configuration"), ("", "no conf")])
def test_a_configuration_that_would_stop_others_from_publishing_is_a_fault(out, text, said):
    """Merged, it would lie in their workspace."""
    (path,) = (out / "experiments").iterdir()
    path.write_text(text)
    claimed(out)
    (fault,) = verify(out).faults
    assert fault.startswith(f"experiments/{path.name}: ") and said in fault


@pytest.mark.parametrize("where", ["record", "manifest", "asked.json", "merged.json"])
def test_what_a_stranger_writes_does_not_reach_the_terminal_as_a_command(out, where):
    evil = "\x1b[2J" + "x" * 5000
    if where == "record":
        resealed(first_record(out), lambda plain: plain["run"].update({evil: 1}))
    elif where == "manifest":
        said = json.loads((out / "manifest.json").read_text())
        said["files"][evil] = {"sha256": "0" * 64, "bytes": 0}
        (out / "manifest.json").write_text(json.dumps(said))
    else:
        (out / where).write_text(json.dumps({evil: 1}))
    if where != "manifest":
        claimed(out)
    faults = verify(out).faults
    assert faults and all("\x1b" not in fault and len(fault) < 500 for fault in faults)
    said = json.loads((out / "manifest.json").read_text())
    said["files"][evil] = 7
    (out / "manifest.json").write_text(json.dumps(said))
    with pytest.raises(UserError) as error:
        verify(out)
    assert "\x1b" not in str(error.value)


def test_a_small_file_that_is_damaged_is_named_once(out):
    (out / "asked.json").write_text("{")
    claimed(out)
    (fault,) = verify(out).faults
    assert fault.startswith("asked.json: Expecting property name") and str(out) not in fault


@pytest.mark.parametrize("depth", [400, 900, 5000, 100_000])
def test_students_nested_without_end_are_a_fault(out, depth):
    run = record("later").run.model_dump(mode="json") | {"spec": {}}
    text = json.dumps({"runs": [{"run": run, "failure": "x"}], "notes": []})
    (out / "asked.json").write_text(text.replace('"spec": {}', f'"spec": {{"a": {"[" * depth}{"]" * depth}}}'))
    claimed(out)
    assert verify(out).faults


def test_what_may_not_be_read_is_one_sentence(out, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(verifying, "entry", refused)
        faults = verify(out).faults
    assert f"records/{first_record(out).name}: cannot be read (Permission denied)" in faults
    for what in ("read_bytes", "lstat"):
        with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot be read: Permission denied"):
            patch.setattr(Path, what, refused)
            verify(out)


def test_a_folder_that_may_not_be_listed_is_not_passed_over(out, monkeypatch):
    real = os.scandir

    def refused(path):
        if Path(path).name == "records":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(UserError, match=r"records' cannot be read: Permission denied"):
        verify(out)


def test_a_folder_that_is_no_publication_is_not_searched(tmp_path, monkeypatch):
    """It may be the whole disk."""
    monkeypatch.setattr(os, "walk", lambda *_, **__: pytest.fail("searched"))
    with pytest.raises(UserError, match="is no publication"):
        verify(tmp_path)


def test_a_workspace_in_place_of_a_publication_is_told_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"`singer-bench publish .*ours -o FOLDER` makes one of a workspace"):
        verify(lab(tmp_path / "ours", "fitnet"))


def test_a_folder_with_too_many_files_is_not_listed_to_its_end(out, monkeypatch):
    monkeypatch.setattr(archive, "MOST_FILES", 3)
    assert "more than 3 files" in verify(out).faults[0]


def test_names_that_are_one_where_capitals_do_not_count_are_a_fault_of_a_folder_too(out):
    (path,) = (out / "experiments").iterdir()
    shutil.copy(path, path.with_name(path.name.upper().replace("YAML", "yaml")))
    claimed(out)
    (fault,) = verify(out).faults
    assert fault.startswith("experiments/") and "where capitals do not count" in fault


def test_items_that_no_record_names_are_too_many(out):
    (out / "items").mkdir()
    (out / "items" / "a.b.safetensors").write_bytes(b"x")
    claimed(out)
    assert verify(out).faults == ("items/a.b.safetensors: no record names it",)


@pytest.mark.parametrize("name", ["run.exe", "records/x.json", "page/../../x", "page/.hidden", "experiments/a/b.yaml"])
def test_a_name_that_no_publication_has_is_a_fault(out, name):
    said = json.loads((out / "manifest.json").read_text())
    said["files"][name] = {"sha256": "0" * 64, "bytes": 0}
    (out / "manifest.json").write_text(json.dumps(said))
    assert any(fault == f"{name}: no name of a file in a publication" for fault in verify(out).faults)


def test_links_and_pipes_are_not_read(out):
    path = first_record(out)
    path.unlink()
    path.symlink_to("/etc/passwd")
    os.mkfifo(out / "page")
    (out / "tables" / "folder").symlink_to("/")
    assert {f"records/{path.name}: a link", "page: no plain file", "tables/folder: a link"} <= set(verify(out).faults)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', "{" * 100_000, '{"format": 99}', "\xff"])
def test_a_manifest_that_is_none_is_one_sentence(out, text):
    (out / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"manifest\.json"):
        verify(out)


@pytest.mark.parametrize("what", ["nothing", "folder", "text"])
def test_what_is_no_publication_is_one_sentence(tmp_path, what):
    place = tmp_path / "place"
    if what == "folder":
        place.mkdir()
    elif what == "text":
        place.write_text("words")
    with pytest.raises(UserError, match="place"):
        verify(place)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.9999])
def test_a_zip_that_was_cut_short_is_a_fault(packed, share):
    data = packed.read_bytes()
    packed.write_bytes(data[: max(2, int(len(data) * share))])
    (fault,) = verify(packed).faults
    assert "cut short or damaged" in fault


def test_a_flipped_bit_anywhere_in_a_zip_is_found_or_changes_nothing_of_what_is_read(packed, tmp_path):
    data = packed.read_bytes()
    whole = verify(packed)
    for place in range(0, len(data), len(data) // 60):
        packed.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        try:
            found = verify(packed)
        except UserError:
            continue
        assert found.faults or (found.records == whole.records and found.fingerprint == whole.fingerprint)


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/x", "a/../../x", "..\\x", "C:\\x", "records/../../x.y.json", "page/\x1b[2Jx", "page/a:b", "x" * 500],
)
def test_a_zip_with_a_name_that_leads_elsewhere_is_not_unpacked(packed, tmp_path, monkeypatch, name):
    monkeypatch.setattr(archive, "_unpack", lambda *_: pytest.fail("unpacked"))
    rezipped(packed, lambda files: files.update({name: b"x"}))
    (fault,) = verify(packed).faults
    assert fault.endswith("no name of a file in a publication") and "\x1b" not in fault


def add(packed: Path, name: str, data: bytes, mode: int = 0) -> None:
    with zipfile.ZipFile(packed, "a") as one:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        one.writestr(info, data)


def test_a_zip_of_another_program_holds_its_folders_too(packed):
    for name in ("records/", "page/details/", "tables/"):
        add(packed, name, b"", stat.S_IFDIR | 0o755)
    assert not verify(packed).faults
    add(packed, "../x/", b"")
    assert verify(packed).faults == ("../x/: no name of a file in a publication",)


def test_a_file_without_a_name_in_a_zip_is_a_fault(packed):
    add(packed, "", b"x")
    assert any("no name of a file in a publication" in fault for fault in verify(packed).faults)


def test_a_zip_of_the_folder_itself_is_told_what_to_do(packed):
    def inside(files):
        for name in list(files):
            files[f"out/{name}"] = files.pop(name)

    with pytest.raises(UserError, match="has its files in a folder 'out'; unpack it, and name that folder"):
        verify(rezipped(packed, inside))


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_zip_that_is_packed_in_another_way_is_not_unpacked(packed, monkeypatch, method):
    """LZMA asks for as much memory as the file says."""
    monkeypatch.setattr(archive, "_unpack", lambda *_: pytest.fail("unpacked"))
    with zipfile.ZipFile(packed) as one:
        files = {name: one.read(name) for name in one.namelist()}
    with zipfile.ZipFile(packed, "w", method) as one:
        for name, data in files.items():
            one.writestr(name, data)
    (fault,) = verify(packed).faults
    assert fault.startswith(f"{next(iter(files))}: compressed in an unusual way and {len(files) - 1} more; pack it as")


def test_no_room_to_unpack_is_one_sentence(packed, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left on device; set TMPDIR"):
        patch.setattr(archive.shutil, "copyfileobj", full)
        verify(packed)
    monkeypatch.setattr(archive.tempfile, "TemporaryDirectory", full)
    with pytest.raises(UserError, match="No space left on device; set TMPDIR"):
        verify(packed)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_with_a_link_or_a_file_twice_is_not_unpacked(packed, monkeypatch):
    monkeypatch.setattr(archive, "_unpack", lambda *_: pytest.fail("unpacked"))
    add(packed, "page/link", b"/etc/passwd", stat.S_IFLNK | 0o777)
    add(packed, "page/Link", b"", stat.S_IFREG | 0o644)
    add(packed, "page/link", b"", stat.S_IFREG | 0o644)
    add(packed, "page/pipe", b"", stat.S_IFIFO | 0o644)
    assert set(verify(packed).faults) == {
        "page/link: a link",
        "page/Link: twice in the zip",
        "page/link: twice in the zip",
        "page/pipe: no plain file",
    }


def test_a_zip_that_claims_huge_sizes_is_not_unpacked(packed):
    def bomb(files):
        said = json.loads(files["manifest.json"])
        said["files"]["page/big"] = {"sha256": "0" * 64, "bytes": 1 << 50}
        files["manifest.json"] = json.dumps(said).encode()

    (fault,) = verify(rezipped(packed, bomb)).faults
    assert f"{1 << 50}"[:6] in fault and "would be unpacked" in fault


def test_a_file_larger_than_the_manifest_says_is_not_unpacked(packed):
    rezipped(packed, lambda files: files.update({"asked.json": b" " * (50 << 20)}))
    assert any(fault.startswith("asked.json: the zip says 52428800 bytes") for fault in verify(packed).faults)


def test_a_file_that_is_larger_than_its_own_zip_says_is_cut_off(packed):
    """The size in the zip's own list is changed to that of the manifest, which is too small."""
    data = packed.read_bytes()
    with zipfile.ZipFile(packed) as one:
        real = one.getinfo("asked.json").file_size
    grown = rezipped(packed, lambda files: files.update({"asked.json": b" " * (1 << 20)}))
    lying = grown.read_bytes().replace((1 << 20).to_bytes(4, "little"), real.to_bytes(4, "little"))
    assert data and lying != grown.read_bytes()
    packed.write_bytes(lying)
    faults = verify(packed).faults
    assert faults and {fault.split(":")[0] for fault in faults} == {"asked.json"}


def test_a_large_manifest_and_many_files_are_refused(packed, monkeypatch):
    monkeypatch.setattr(archive, "MOST_MANIFEST", 10)
    assert "larger than 10 bytes" in verify(packed).faults[0]
    monkeypatch.setattr(archive, "MOST_FILES", 3)
    assert "at most 3 are looked at" in verify(packed).faults[0]


def test_the_zip_leaves_nothing_unpacked(packed, tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    verify(packed)
    assert not list((tmp_path / "temporary").iterdir())


def test_tables_of_another_version_are_compared_by_their_numbers(out):
    other = json.loads((out / "manifest.json").read_text())["program"] | {"tables": "0" * 16, "version": "9"}
    (out / "tables" / "leaderboard.md").write_text("laid out otherwise")
    claimed(out, program=other)
    found = verify(out)
    assert not found.faults and "(9)" in found.notes[0]
    table = out / "tables" / "leaderboard.json"
    plain = json.loads(table.read_text())
    plain["sections"][0]["rows"][0]["cells"][0]["mean"] = 0.99
    table.write_text(json.dumps(plain))
    claimed(out, program=other)
    assert verify(out).faults == ("tables/leaderboard.json: its numbers are not those of the records",)
    table.write_text("[]")
    claimed(out, program=other)
    assert verify(out).faults == ("tables/leaderboard.json: its numbers are not those of the records",)


HOSTILE = ["<script>alert(1)</script>", "=1+1", "../../etc/passwd", "a\x1b[31mb\u202e", "{{x}}", "x" * 3000, "\u2028"]


def test_hostile_contents_are_packed_and_verified_as_any_other(tmp_path):
    records = [named(one) for label in HOSTILE for one in seeds(label, 0.5, 1e149, task=label)]
    filled(tmp_path / "ours", records)
    done = published(tmp_path / "ours", tmp_path / "out.zip")
    found = verify(tmp_path / "out.zip")
    assert not found.faults and found.fingerprint == done.fingerprint
    with zipfile.ZipFile(tmp_path / "out.zip") as one:
        assert b"<script>" not in one.read("tables/leaderboard.md")


def test_verifying_writes_nothing_into_a_folder(out):
    before = contents(out)
    verify(out)
    assert contents(out) == before


def test_a_single_record_is_enough(tmp_path):
    filled(tmp_path / "ours", [named(record("fitnet"))])
    published(tmp_path / "ours", tmp_path / "out")
    assert not verify(tmp_path / "out").faults
