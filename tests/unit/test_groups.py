"""Rows brought together prompt by prompt: each once, in order, however many files it takes."""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rft import groups, rows
from rft.groups import Partitions, Source
from rft.types import Candidate, Finish, ScoreRow, Verdict

COLUMNS = ["id", "prompt_id", "text"]


def candidates(prompts: int, most: int = 7) -> list[Candidate]:
    """Up to `most` of each prompt, in the order of chance."""
    chance = random.Random(prompts)
    made = [
        Candidate(f"c{p}.{i}", f"p{p:05d}", i, f"{p} \u20ac \U0001f600", (), (), Finish.STOP)
        for p in range(prompts)
        for i in range(chance.randint(1, most))
    ]
    chance.shuffle(made)
    return made


def write(folder: Path, given: list[Any], part: int) -> Path:
    for at in range(0, len(given), part):
        rows.write_part(folder, given[at : at + part], type(given[0]))
    return folder


def ids(table: pa.Table) -> list[str]:
    got: list[str] = table.column("id").to_pylist()
    return got


def told(given: list[Candidate]) -> list[ScoreRow]:
    return [ScoreRow(c.id, c.prompt_id, Verdict.WRONG, None, None, None, "") for c in given]


@pytest.mark.parametrize("part", [1, 50, 10_000])
def test_every_row_once_with_all_of_its_prompt(tmp_path: Path, part: int) -> None:
    made = candidates(60)
    source = Source(write(tmp_path / "a", made, part), COLUMNS)
    partitions = Partitions([source], tmp_path / "scratch", size=20)
    tables = [table for (table,) in partitions]
    assert len(tables) == partitions.number > 5
    assert sorted(i for table in tables for i in ids(table)) == sorted(c.id for c in made)
    prompts = [sorted(set(table.column("prompt_id").to_pylist())) for table in tables]
    # No prompt is in two files, and the files follow one another in the order of prompts.
    flat = [p for some in prompts for p in some]
    assert flat == sorted(set(flat)) and len(flat) == 60
    assert all(20 <= table.num_rows < 20 + 7 for table in tables[:-1])
    assert partitions.counts == {p: sum(c.prompt_id == p for c in made) for p in flat}
    assert all(t.schema.names == COLUMNS for t in tables)
    assert tables[0].column("text")[0].as_py().endswith("\u20ac \U0001f600")


def test_again_and_again_and_then_nothing_is_left(tmp_path: Path) -> None:
    made = candidates(40)
    source = Source(write(tmp_path / "a", made, 30), COLUMNS)
    partitions = Partitions([source], tmp_path / "scratch", size=25)
    first = [ids(table) for (table,) in partitions]
    next(iter(partitions))  # given up in the middle
    assert [ids(table) for (table,) in partitions] == first
    assert (tmp_path / "scratch").is_dir()
    partitions.close()
    assert not (tmp_path / "scratch").exists()
    partitions.close()


def test_few_rows_need_no_file(tmp_path: Path) -> None:
    made = candidates(5)
    source = Source(write(tmp_path / "a", made, 3), COLUMNS)
    partitions = Partitions([source], tmp_path / "scratch")
    for _ in range(2):
        ((table,),) = partitions
        assert ids(table) == [c.id for c in made]
    assert not (tmp_path / "scratch").exists()


def test_sources_meet_by_prompt_whatever_lies_where(tmp_path: Path) -> None:
    made = candidates(50)
    some = [c for c in made if c.prompt_id > "p00030"]
    sources = [
        Source(write(tmp_path / "a", made, 40), COLUMNS),
        Source(write(tmp_path / "b", told(made[::-1]), 33), ["id", "prompt_id", "verdict"]),
        Source(write(tmp_path / "c", told(some), 1000), ["id", "prompt_id"]),
    ]
    partitions = Partitions(sources, tmp_path / "scratch", size=60)
    assert partitions.number > 3
    found: list[str] = []
    for a, b, c in partitions:
        assert sorted(ids(a)) == sorted(ids(b))
        assert set(ids(c)) == {i for i in ids(a) if i in {x.id for x in some}}
        found += ids(c)
    assert sorted(found) == sorted(x.id for x in some)


@pytest.mark.parametrize("size", [10, 1000])
def test_an_empty_source_beside_a_full_one(tmp_path: Path, size: int) -> None:
    made = candidates(20)
    sources = [Source(tmp_path / "none", COLUMNS), Source(write(tmp_path / "a", made, 7), COLUMNS)]
    partitions = Partitions(sources, tmp_path / "scratch", size=size)
    pairs = list(partitions)
    assert all(empty.num_rows == 0 for empty, _ in pairs)
    assert sum(full.num_rows for _, full in pairs) == len(made)


def test_nothing_at_all(tmp_path: Path) -> None:
    partitions = Partitions([Source(tmp_path / "none", COLUMNS)], tmp_path / "scratch")
    ((table,),) = partitions
    assert table.num_rows == 0 and ids(table) == []
    partitions.close()


def test_what_is_prepared_is_what_is_kept(tmp_path: Path) -> None:
    def shorter(batch: pa.RecordBatch) -> pa.RecordBatch:
        return batch.select(["id", "prompt_id"])

    source = Source(write(tmp_path / "a", candidates(30), 20), COLUMNS, shorter)
    for size in (10, 1000):
        for (table,) in Partitions([source], tmp_path / str(size), size=size):
            assert table.schema.names == ["id", "prompt_id"]


def test_a_row_in_two_parts_comes_once(tmp_path: Path) -> None:
    made = candidates(30)
    write(tmp_path / "a", made, 20)
    rows.write_part(tmp_path / "a", made[:15], Candidate)
    partitions = Partitions([Source(tmp_path / "a", COLUMNS)], tmp_path / "scratch", size=10)
    assert partitions.counts.total() == len(made)
    assert sum(table.num_rows for (table,) in partitions) == len(made)


def test_what_a_killed_stage_left_in_the_scratch_folder_is_not_read(tmp_path: Path) -> None:
    made = candidates(30)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "0-0").write_bytes(b"half of a file")
    source = Source(write(tmp_path / "a", made, 20), COLUMNS)
    partitions = Partitions([source], tmp_path / "scratch", size=10)
    assert sum(table.num_rows for (table,) in partitions) == len(made)


def test_a_prompt_larger_than_a_file_is_not_split(tmp_path: Path) -> None:
    made = [Candidate(f"c{i}", f"p{i % 2}", i, "", (), (), Finish.STOP) for i in range(100)]
    source = Source(write(tmp_path / "a", made, 9), COLUMNS)
    tables = [t for (t,) in Partitions([source], tmp_path / "scratch", size=3)]
    assert [t.num_rows for t in tables] == [50, 50]


def test_no_more_files_than_can_be_open_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "MOST_FILES", 8)
    made = candidates(200)
    source = Source(write(tmp_path / "a", made, 100), COLUMNS)
    partitions = Partitions([source], tmp_path / "scratch", size=1)
    assert 4 < partitions.number <= 9
    assert sum(table.num_rows for (table,) in partitions) == len(made)


def test_a_hundred_thousand_prompts(tmp_path: Path) -> None:
    made = [
        Candidate(f"c{i}", f"p{i * 7919 % 100_000}", 0, "x", (), (), Finish.STOP)
        for i in range(100_000)
    ]
    source = Source(write(tmp_path / "a", made, 25_000), COLUMNS)
    partitions = Partitions([source], tmp_path / "scratch", size=10_000)
    last = ""
    for (table,) in partitions:
        prompts = sorted(table.column("prompt_id").to_pylist())
        assert len(prompts) == len(set(prompts)) == 10_000
        assert last < prompts[0]
        last = prompts[-1]
    assert partitions.number == 10
