"""Prompts in the web UIs' syntax, as text: what stable-diffusion-webui's own parsers make of the same."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sdbatch.errors import JobError
from sdbatch.job import tokens
from sdbatch.prompts.chunks import HEAVIEST, Chunk, Vector, chunks
from sdbatch.prompts.syntax import (
    BREAK,
    DEEPEST,
    MOST_BRACKETS,
    Network,
    Prompt,
    Stage,
    emphasis,
    joined,
    stages,
    without_networks,
)

SIGNS = st.lists(st.sampled_from([*"()[]:|\\ ab1.<>,", "BREAK", " AND ", "0.5", "lora:"]), max_size=40).map("".join)

# Emphasis


@pytest.mark.parametrize(
    ("text", "runs"),
    [  # most of them from the docstring of that program's parser
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [("a ", 1.0), ("house", 1.5730000000000004), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55),
             (", sun, ", 1.1), ("sky", 1.4641000000000006), (".", 1.1)],
        ),
        ("a [b", [("a ", 1.0), ("b", 1 / 1.1)]),
        ("a) b]", [("a) b]", 1.0)]),
        ("(a:x) b", [("a:x", 1.1), (" b", 1.0)]),
        ("a:1.2) b", [("a:1.2) b", 1.0)]),
        ("", [("", 1.0)]),
        ("a BREAK b", [("a", 1.0), BREAK, ("b", 1.0)]),
        ("a BREAKs", [("a BREAKs", 1.0)]),
        ("(a BREAK b)", [("a", 1.1), ("BREAK", -1.1), ("b", 1.1)]),
    ],
)  # fmt: skip
def test_runs_of_equal_weight(text: str, runs: list[tuple[str, float]]) -> None:
    assert emphasis(text) == runs


@given(SIGNS)
def test_emphasis_loses_no_letter_but_signs_and_blanks_at_breaks(text: str) -> None:
    kept = [c for run in emphasis(text) for c in run.text if c in "abBREAKlor"]
    assert kept == [c for c in text if c in "abBREAKlor"]


@given(st.text(st.characters(exclude_characters="()[]:\\")))
def test_a_text_without_signs_is_one_run(text: str) -> None:
    assert emphasis(text.replace("BREAK", "")) == [(text.replace("BREAK", ""), 1.0)]


@given(st.text())
def test_what_is_escaped_is_the_letter_itself(text: str) -> None:
    escaped = "".join(f"\\{c}" if c in "()[]\\" else c for c in text).replace("BREAK", "")
    assert emphasis(escaped) == [(text.replace("BREAK", ""), 1.0)]


# Editing


@pytest.mark.parametrize(
    ("text", "changes"),
    [  # most of them from the docstring of that program's parser; ten steps
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3]", [(3, "a "), (10, "a b")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
        ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("a [{b|d{:.5] c", [(10, "a [{b|d{:.5] c")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[a|(b:1.1)]", [(n, "a" if n % 2 else "(b:1.1)") for n in range(1, 11)]),
        ("[fe|]male", [(n, "female" if n % 2 else "male") for n in range(1, 11)]),
        ("[fe|||]male", [(n, "female" if n % 4 == 1 else "male") for n in range(1, 11)]),
        ("a [cat::2] b", [(2, "a cat b"), (10, "a  b")]),
        ("a [cat:dog:12]", [(10, "a cat")]),
        ("a [cat:dog:0]", [(10, "a dog")]),
        ("a [cat:dog:-1]", [(10, "a dog")]),
        ("a [cat:dog:1.0]", [(10, "a cat")]),
        ("a | b [c:3]", [(10, "a | b [c:3]")]),
        (r"\[a:b:3\]", [(10, r"\[a:b:3\]")]),
        ("[a:b:3]\\", [(10, "[a:b:3]\\")]),
    ],
)
def test_what_a_prompt_is_from_step_to_step(text: str, changes: list[tuple[int, str]]) -> None:
    assert stages(text, 10) == [Stage(*change) for change in changes]


@given(SIGNS, st.integers(1, 30))
def test_stages_go_on_to_the_last_prediction(text: str, predictions: int) -> None:
    found = stages(text, predictions)
    ends = [stage.last for stage in found]
    assert ends == sorted(set(ends))
    assert ends[-1] == predictions
    if "[" not in text:
        assert found == [Stage(predictions, text)]


# AND, and what stands in <...>


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a cat AND a dog", [("a cat ", 1.0), (" a dog", 1.0)]),
        ("a cat :1.2 AND a dog:0.5", [("a cat", 1.2), (" a dog", 0.5)]),
        ("a cat:x AND", [("a cat:x ", 1.0), ("", 1.0)]),
        ("SAND ANDY", [("SAND ANDY", 1.0)]),
        ("16:9", [("16", 9.0)]),
    ],
)
def test_prompts_joined_by_and(text: str, prompts: list[tuple[str, float]]) -> None:
    assert joined(text) == [Prompt(*each) for each in prompts]


@pytest.mark.parametrize(
    ("text", "rest", "found"),
    [
        ("a <lora:pencil:0.8> cat", "a  cat", [("lora", ("pencil", "0.8"))]),
        ("<lora:a><hypernet:b:1>", "", [("lora", ("a",)), ("hypernet", ("b", "1"))]),
        ("a < b > c <x> <lora:>", "a < b > c <x> <lora:>", []),
        ("<a <lora:b:1:te=0.5>", "<a ", [("lora", ("b", "1", "te=0.5"))]),
    ],
)
def test_networks_are_taken_out(text: str, rest: str, found: list[tuple[str, tuple[str, ...]]]) -> None:
    assert without_networks(text) == (rest, [Network(*each) for each in found])


@pytest.mark.parametrize("part", ["[", "[a:", "(", "(a:1", "()", "[a|b]", "[[a:b:3]:d:4]", " ", "<a:", ":1 ", "a>"])
def test_the_longest_prompt_is_read_to_its_end(part: str) -> None:
    """A general parser would need hours for some of these."""
    text = (part * 10_000)[:10_000]
    assert stages(text, 5)[-1].last == 5
    assert emphasis(text)
    assert joined(text)
    assert len(without_networks(text)[0]) <= len(text)


def test_more_brackets_than_any_prompt_has_are_letters() -> None:
    assert emphasis("(" * (MOST_BRACKETS + 1)) == [("(" * (MOST_BRACKETS + 1), 1.0)]
    deep = "[" * DEEPEST + "a:b:3]" * DEEPEST
    assert stages(deep, 5) == [(5, deep)]


# Chunks


def encode(text: str) -> list[int]:
    return tokens.encode(text, "clip")


def lengths(text: str, **embeddings: int) -> list[int]:
    return [len(chunk.tokens) for chunk in chunks(text, encode, embeddings)]


def test_a_chunk_has_at_most_75_tokens() -> None:
    assert lengths("") == [0]
    assert lengths("cat " * 75) == [75]
    assert lengths("cat " * 76) == [75, 1]
    assert lengths("a BREAK b BREAK BREAK") == [1, 1, 0]


def test_what_follows_a_comma_near_the_end_of_a_full_chunk_moves_on() -> None:
    assert lengths("cat " * 60 + ", " + "dog " * 20) == [61, 20]
    assert lengths("cat " * 54 + ", " + "dog " * 21) == [75, 1], "21 tokens back is too far"
    assert lengths("cat " * 55 + ", " + "dog " * 20) == [56, 20]
    assert lengths("cat " * 75 + ", dog") == [75, 2], "a comma may begin a chunk"


def test_tokens_have_the_weight_of_their_run() -> None:
    (chunk,) = chunks("a (cat:1.5) b", encode, {})
    assert chunk == Chunk([*encode("a"), *encode("cat"), *encode("b")], [1.0, 1.5, 1.0])


def test_an_embedding_stands_for_its_vectors() -> None:
    (chunk,) = chunks("a (Easy-Negative:1.2) cat", encode, {"easy-negative": 2, "easy": 1})
    assert chunk.tokens == [*encode("a"), Vector("easy-negative", 0), Vector("easy-negative", 1), *encode("cat")]
    assert chunk.weights == [1.0, 1.2, 1.2, 1.0]
    assert lengths("cat " * 70 + "easy", easy=8) == [70, 8], "it is not torn apart"


@given(SIGNS.map(lambda text: (text + ", ") * 5))
def test_chunks_hold_every_token_once_and_in_order(text: str) -> None:
    assume(all(abs(run.weight) <= HEAVIEST for run in emphasis(text)))
    found = chunks(text, encode, {})
    runs = [run for run in emphasis(text) if run != BREAK]
    assert [token for chunk in found for token in chunk.tokens] == [t for run in runs for t in encode(run.text)]
    assert all(len(chunk.tokens) == len(chunk.weights) <= 75 for chunk in found)


def test_a_weight_out_of_all_proportion_is_told() -> None:
    """A network's numbers would overflow, and the checkpoint would be blamed."""
    with pytest.raises(JobError, match="prompt: cat has the weight 1e\\+06; the limit is 1000"):
        chunks("a (cat:1000000)", encode, {})
