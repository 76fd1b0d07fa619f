"""Rows on disk: whole or absent, each once, the same whatever their order."""

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rft import rows
from rft.types import (
    Candidate,
    ChoiceRow,
    Finish,
    ProblemRow,
    Prompt,
    RftError,
    ScoreRow,
    TrainRow,
    Verdict,
)

FULL: list[Any] = [
    Prompt("p1", "1 + 1?", "2", "1 + 1 = 2\n#### 2", "sum", "assert f() == 2"),
    Candidate(
        "c1",
        "p1",
        3,
        "zwei \u20ac\n",
        (1, 2),
        (3, 2**31 - 1),
        Finish.STOP,
        -1.5,
        (-1.0, -0.5),
        "hot",
        1,
    ),
    ScoreRow("c1", "p1", Verdict.UNKNOWN, "timeout", "2", 0.25, "[]"),
    ChoiceRow("c1", "p1", "wrong"),
    TrainRow("c1", "p1", (1,), (2, 3), True, "hot", -0.5, (-1.0, -0.5)),
    ProblemRow("p1", 2, 1, 0, 1, ("2", ""), (True, False), 40),
]
BARE: list[Any] = [
    Prompt("p2", "1 + 1?"),
    Candidate("c2", "p2", 0, "", (), (), Finish.LENGTH),
    ScoreRow("c2", "p2", Verdict.WRONG, None, None, None, ""),
    ChoiceRow("c2", "p2", None),
    TrainRow("c2", "p2", (), (), False),
    ProblemRow("p2", 0, 0, 0, 0, (), (), 0),
]


@pytest.mark.parametrize("full, bare", list(zip(FULL, BARE)), ids=lambda row: type(row).__name__)
def test_round_trip(tmp_path: Path, full: Any, bare: Any) -> None:
    for order in ([full, bare], [bare, full], [bare]):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        rows.write_part(folder, iter(order), type(full))
        got = list(rows.read(folder, type(full)))
        assert got == order
        for one, same in zip(got, order):
            for field in dataclasses.fields(one):
                assert type(getattr(one, field.name)) is type(getattr(same, field.name))


def test_every_row_type_is_tried() -> None:
    assert [type(a) for a in FULL] == [type(b) for b in BARE]
    for row in FULL:
        assert all(getattr(row, f.name) not in (None, ()) for f in dataclasses.fields(row))


def choice(i: int, reason: str | None = None) -> ChoiceRow:
    return ChoiceRow(f"c{i}", f"p{i % 3}", reason)


def test_no_part_for_no_rows(tmp_path: Path) -> None:
    assert rows.write_part(tmp_path / "none", [], ChoiceRow) is None
    assert not (tmp_path / "none").exists()
    assert list(rows.read(tmp_path / "none", ChoiceRow)) == []
    assert rows.ids(tmp_path / "none") == set()


def test_parts_follow_each_other_and_leave_no_other_file(tmp_path: Path) -> None:
    for i in range(3):
        rows.write_part(tmp_path, [choice(i)], ChoiceRow)
    names = [f"part-{i:05d}.parquet" for i in range(3)]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert rows.ids(tmp_path) == {"c0", "c1", "c2"}


def test_part_after_the_hundred_thousandth_replaces_none(tmp_path: Path) -> None:
    first = rows.write_part(tmp_path, [choice(0)], ChoiceRow)
    assert first
    first.rename(tmp_path / "part-99999.parquet")
    rows.write_part(tmp_path, [choice(1)], ChoiceRow)
    rows.write_part(tmp_path, [choice(2)], ChoiceRow)
    assert rows.ids(tmp_path) == {"c0", "c1", "c2"}


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_torn_part_is_set_aside_and_its_rows_are_owed_again(tmp_path: Path, keep: int) -> None:
    for i in range(3):
        rows.write_part(tmp_path, [choice(i)], ChoiceRow)
    torn = tmp_path / "part-00001.parquet"
    torn.write_bytes(torn.read_bytes()[:keep])
    assert rows.ids(tmp_path) == {"c0", "c2"}
    assert [row.id for row in rows.read(tmp_path, ChoiceRow)] == ["c0", "c2"]
    assert not torn.exists() and torn.with_suffix(".parquet.torn").is_file()
    assert rows.write_part(tmp_path, [choice(1)], ChoiceRow) == tmp_path / "part-00003.parquet"
    assert rows.ids(tmp_path) == {"c0", "c1", "c2"}
    # Even a torn last part leaves its number taken.
    last = tmp_path / "part-00003.parquet"
    last.write_bytes(b"")
    rows.parts(tmp_path)
    assert rows.write_part(tmp_path, [choice(1)], ChoiceRow) == tmp_path / "part-00004.parquet"


def test_many_small_parts_become_one_and_few_or_large_ones_stay(tmp_path: Path) -> None:
    large = rows.write_part(tmp_path, [choice(i) for i in range(100, 120)], ChoiceRow)
    for i in range(7):
        rows.write_part(tmp_path, [choice(i)], ChoiceRow)
    before = rows.parts(tmp_path)
    rows.merge_small(tmp_path, 20)
    assert rows.parts(tmp_path) == before
    rows.write_part(tmp_path, [choice(7)], ChoiceRow)
    every = sorted(rows.ids(tmp_path))
    rows.merge_small(tmp_path, 20)
    assert len(rows.parts(tmp_path)) == 2 and large in rows.parts(tmp_path)
    assert sorted(row.id for row in rows.read(tmp_path, ChoiceRow)) == every


def test_flipped_bit_is_never_read_as_a_row(tmp_path: Path) -> None:
    """Any bit of the pages, size unchanged: the same rows, or one error and the part set aside."""
    asked = [Prompt(f"p{i}", f"{i} + {i}?", str(2 * i)) for i in range(50)]
    part = rows.write_part(tmp_path, asked, Prompt)
    assert part
    sound = part.read_bytes()
    pages = len(sound) - int.from_bytes(sound[-8:-4], "little") - 8
    messages = []
    for at in range(4, pages, 7):
        part.write_bytes(sound[:at] + bytes([sound[at] ^ (1 << at % 8)]) + sound[at + 1 :])
        try:
            assert list(rows.read(tmp_path, Prompt)) == asked
        except RftError as told:
            messages.append(str(told))
            assert not part.exists() and rows.ids(tmp_path) == set()
    assert len(messages) > 50 and all("set aside" in m and "\n" not in m for m in messages)


def test_half_written_file_is_no_part(tmp_path: Path) -> None:
    rows.write_part(tmp_path, [choice(0)], ChoiceRow)
    (tmp_path / ".part-00001.parquet.tmp").write_bytes(b"PAR1")
    assert rows.ids(tmp_path) == {"c0"}


def test_duplicate_ids_are_read_once(tmp_path: Path) -> None:
    rows.write_part(tmp_path, [choice(0, "first"), choice(1)], ChoiceRow)
    rows.write_part(tmp_path, [choice(1), choice(0, "second"), choice(2)], ChoiceRow)
    got = list(rows.read(tmp_path, ChoiceRow))
    assert [row.id for row in got] == ["c0", "c1", "c2"]
    assert got[0].reason == "first"


def test_chosen_columns(tmp_path: Path) -> None:
    candidates = [Candidate(f"c{i}", "p", i, "text", (1,), (2,), Finish.STOP) for i in range(3)]
    rows.write_part(tmp_path, candidates, Candidate)
    for columns in (["text", "finish"], ["finish", "id", "text"]):
        got = list(rows.read(tmp_path, Candidate, columns=columns))
        assert [row.id for row in got] == ["c0", "c1", "c2"]
        assert got[0].text == "text" and got[0].finish is Finish.STOP
        assert got[0].token_ids is None and got[0].index is None


def test_writer_writes_by_rows_by_time_and_at_its_end(tmp_path: Path) -> None:
    with rows.Writer(tmp_path / "rows", ChoiceRow, rows=2, seconds=1e9) as writer:
        for i in range(5):
            writer.add(choice(i))
        assert len(rows.ids(tmp_path / "rows")) == 4
    assert len(rows.ids(tmp_path / "rows")) == 5
    writer = rows.Writer(tmp_path / "time", ChoiceRow, rows=10**9, seconds=0)
    writer.add(choice(0))
    assert len(rows.ids(tmp_path / "time")) == 1


def test_writer_keeps_its_rows_when_the_work_fails(tmp_path: Path) -> None:
    def work() -> None:
        with rows.Writer(tmp_path, ChoiceRow) as writer:
            writer.add(choice(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert rows.ids(tmp_path) == {"c0"}


def test_failed_write_can_be_tried_again_and_leaves_nothing(tmp_path: Path) -> None:
    # A file where the folder should be fails for root as well, unlike a mode.
    place = tmp_path / "place"
    place.write_text("")
    writer = rows.Writer(place, ChoiceRow, rows=10)
    writer.add(choice(0))
    with pytest.raises(OSError):
        writer.flush()
    place.unlink()
    writer.flush()
    assert rows.ids(place) == {"c0"}


def test_full_disk_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(RftError, match="disk is full"):
        _full(tmp_path)


def test_a_full_disk_is_one_message_from_safetensors_too(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    # As it was met; save_file to /dev/full replaces that.
    told = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(RftError, match="disk is full"), rows.disk_errors(tmp_path):
        raise SafetensorError(told)
    with pytest.raises(ValueError, match="else"), rows.disk_errors(tmp_path):
        raise ValueError("something else")


def _full(tmp_path: Path) -> None:
    with rows.disk_errors(tmp_path), open("/dev/full", "w") as file:
        file.write("x" * 100_000)


def test_rows_of_another_version_are_named(tmp_path: Path) -> None:
    old = pa.table({"id": ["c1"], "prompt_id": ["p1"]})
    rows.write_part(tmp_path, [BARE[3]], ChoiceRow)
    (path,) = rows.parts(tmp_path)
    pq.write_table(old, path)
    with pytest.raises(RftError, match="its rows have no .*: another version of rft wrote them"):
        list(rows.read(tmp_path, ChoiceRow))
