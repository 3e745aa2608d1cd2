"""The prompts of a from_file."""

from pathlib import Path

import pytest

from sdbatch.errors import JobError
from sdbatch.job.prompt_file import read_lines


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"\xef\xbb\xbfa\nb\n", ["a", "b"]),
        (b"a\n\nb\n\n", ["a", "", "b", ""]),
        (b"\n", [""]),
        (b"  a \n\tb\n", ["  a ", "\tb"]),
        ("一辆卡车\n🚚\n".encode(), ["一辆卡车", "🚚"]),
        (b"x" * 10_000, ["x" * 10_000]),
    ],
)
def test_every_line_is_a_prompt_as_it_stands(tmp_path: Path, data: bytes, lines: list[str]) -> None:
    (tmp_path / "prompts.txt").write_bytes(data)
    assert read_lines(tmp_path / "prompts.txt") == lines


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "the file is empty; it needs a prompt on each line"),
        (b"\xef\xbb\xbf", "the file is empty; it needs a prompt on each line"),
        ("é".encode("latin-1"), "the file is not UTF-8 text; save it as UTF-8"),
        ("a\nb".encode("utf-16"), "the file is not UTF-8 text; save it as UTF-8"),
        (b"a\nb\0c\n", "line 2 contains a control character; remove it"),
        (b"a\n\nb\x1b[31m\n", "line 3 contains a control character; remove it"),
        ("a\nb\x9b31m\n".encode(), "line 2 contains a control character; remove it"),
        (b"a\n" + b"x" * 10_001, "line 2 has 10,001 characters; the limit of a prompt is 10,000"),
    ],
)
def test_what_is_no_list_of_prompts_is_told_without_quoting_it(tmp_path: Path, data: bytes, told: str) -> None:
    (tmp_path / "prompts.txt").write_bytes(data)
    with pytest.raises(JobError) as error:
        read_lines(tmp_path / "prompts.txt")
    assert str(error.value) == f"from_file: {told}"
