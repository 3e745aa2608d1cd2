"""Job files that people write, and that nobody would: examples, hypothesis strategies, and what must come of each."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from sdbatch.job.manifest import Grid, Input, Manifest, Picture
from sdbatch.job.parameters import AnyJob, Img2Img, Txt2Img
from sdbatch.job.reader import Parsed, parse

HERE = Path(__file__).parent
JOBS = HERE / "jobs"

# What every answer is

LONGEST_ERROR = 4_000  # characters, of one job
_PLACE = re.compile(
    r"line (?P<line>\d+)(, column \d+)?: ."
    r"|(follow_up|follow_up\.init_img|id, job|sdbatch_manifest): ."  # a field that is missing has no line
    r"|the file (is|contains) .|there is no job in this file|and \d+ more$"
)
_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")


def check(data: bytes, name: str) -> list[Parsed]:
    """Parse what may be anything: never an exception, always an answer that a person can use.

    An error says where: the file in each line, then a line of it, or a field, or that it is the whole file.
    """
    entries = parse(data, name)
    assert entries
    end = len(_BREAK.findall(data.decode("utf-8", "replace"))) + 2  # for libyaml the end is a line of its own
    for entry in entries:
        assert (entry.job is None) != (entry.error is None)
        if entry.error is not None:
            told = str(entry.error)
            assert len(told) < LONGEST_ERROR
            for line in told.split("\n"):
                assert line.startswith(f"{name}: ")
                assert line.isprintable()  # and so no half character, which would not encode
                place = _PLACE.match(line.removeprefix(f"{name}: "))
                assert place, line
                assert 1 <= int(place["line"] or 1) <= end, line
    return entries


def only_job(text: str, name: str) -> AnyJob:
    (entry,) = check(text.encode(), name)
    assert entry.job is not None, entry.error
    return entry.job


# Anything that looks like a job

EXTENSIONS = ["yaml", "yml", "json"]
FIELDS = sorted({*Txt2Img.model_fields, *Img2Img.model_fields})
everything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**29, 10**40)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "1e3", "no", "~", "\x00", "\x85", "\ufeff", "<<", "="]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
names = (
    st.sampled_from(FIELDS)
    | st.sampled_from(FIELDS).map(lambda field: field.replace("_", "-"))
    | st.builds(lambda field, at: field[:at] + field[at + 1 :], st.sampled_from(FIELDS), st.integers(0, 12))
    | st.text(max_size=8)
)
job_like = st.dictionaries(names, everything, max_size=6)
halves = st.text(alphabet=st.characters(), max_size=5)  # half characters too, which JSON can write

# Good jobs

printable = st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from("\t\n\r'\"\\:#-{}[]&*!%@`|>")
text = st.text(printable, max_size=30) | st.sampled_from(
    ["1984", "no", "08", "1e3", "-.5", "", ".inf", "=", "2023-04-18"]
)
paths = st.text("ab./_- é0", min_size=1, max_size=30).filter(lambda path: path.strip() and not path.startswith("//"))
sides = st.integers(8, 1024).map(lambda eighth: eighth * 8)
shared: dict[str, st.SearchStrategy[Any]] = {
    "negative_prompt": text,
    "name": text,
    "skip_grid": st.booleans(),
    "skip_save": st.booleans(),
    "ddim_steps": st.integers(1, 1000),
    "fixed_code": st.booleans(),
    "C": st.integers(1, 64),
    "f": st.integers(1, 64),
    "n_rows": st.integers(0, 1000),
    "from_file": paths,
    "config": paths,
    "ckpt": paths,
    "seed": st.integers(-1, 2**32 - 1),
    "precision": st.sampled_from(["autocast", "full", "half"]),
    "n_iter": st.integers(1, 10_000),
    "n_samples": st.integers(1, 1000),
    "scale": st.floats(0, 100) | st.integers(0, 100),
    "outdir": paths,
}
eta = st.floats(0, 1) | st.integers(0, 1)
txt2img = st.fixed_dictionaries({"prompt": text}, optional=shared | {"H": sides, "W": sides, "ddim_eta": eta})
plms = st.fixed_dictionaries({"prompt": text, "plms": st.just(True)}, optional=shared | {"ddim_eta": st.just(0.0)})
laion400m = st.fixed_dictionaries({"prompt": text, "laion400m": st.booleans()}, optional=shared)
img2img = st.fixed_dictionaries(
    {"prompt": text, "init_img": paths},
    optional=shared | {"strength": eta, "ddim_eta": eta, "plms": st.just(False), "laion400m": st.just(False)},
)
good_jobs = txt2img | plms | laion400m | img2img

# Manifests


def manifest_of(job: AnyJob, pictures: list[Picture]) -> Manifest:
    return Manifest(
        id="20261122T101530Z-000042-job",
        source="job.yaml",
        part=None,
        source_sha256="0" * 64,
        parent=None,
        attempts=1,
        job=job.model_dump(),
        pictures=pictures,
        grid=None,
        inputs=[],
        outdir=job.outdir,
        timings={},
        versions={},
        device="cpu",
        checkpoint={},
        notes=[],
    )


PICTURE = Picture(file="samples/00000.png", sha256="0" * 64, seed=42, iteration=0, index=0, prompt="a")
MANIFEST = manifest_of(Txt2Img(prompt="a"), [PICTURE])
RECORD: dict[str, Any] = yaml.safe_load(MANIFEST.to_yaml())
block = st.fixed_dictionaries({}, optional={"init_img": everything, "prompt": everything, "strength": everything})
picture = st.fixed_dictionaries({}, optional=dict.fromkeys(("file", "published", "sha256"), everything))
taken_input = st.fixed_dictionaries({}, optional=dict.fromkeys(("field", "file", "sha256"), everything))
damage = st.fixed_dictionaries(
    {},
    optional={
        "sdbatch_manifest": everything | st.just(1),
        "id": everything | halves,
        "job": everything | job_like | good_jobs,
        "follow_up": everything | block | good_jobs | st.just({"init_img": 0}),
        "pictures": everything | st.lists(picture | everything, max_size=2),
        "inputs": everything | st.lists(taken_input | everything, max_size=2),
    },
)

# Files as they lie in the inbox

HOSTILE = [
    b"[" * 2_000,
    b'{"a":' * 500 + b"1" + b"}" * 500,
    b"a: &a [x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n",
    b"a: &a {x: y}\nb:\n  <<: [*a, *a]\n  <<: *a\n",
    b"x: !!python/object/apply:os.system [id]\nprompt: !!binary aGVsbG8=\n",
    "prompt: a\nseed: 1\n".encode("utf-16"),
    "name: café\nprompt: é\n".encode("latin-1"),
    b"prompt: a\0b\n",
    b"prompt: a\nseed: 1" + b"0" * 400 + b"\nscale: 1e400\nH: .nan\nW: 1e3\n",
    b"%YAML 1.1\n%TAG ! tag:x,2000:\n--- !job\nprompt: >+2\n   a\n\n...\n--- |-\n a\n",
    b"# comment\n- prompt: 'a'\n  seed: 1\n- {prompt: b, init_img: x.png, strength: 1e-1}\n- ? [a, {b: c}]\n  : *c\n",
    b"prompt: a blue truck\nH: 512\n---\nprompt: |\n  two\n  lines\nscale: 7.5\n",
    b'{"\\u202e": 1, "a\\ud800": 1}',
    b'[{"prompt": "a\\ud83d\\ude00"}, {"prompt": "\\ud800"}, {"prompt": "a", "prompt": "b"}] {"x": [{"q": 1, "q": 2}]}',
]
_GRID = Grid(file="grid-0000.png", sha256="1" * 64, published="outputs/grid-0000.png")
_INPUT = Input(field="from_file", named="p.txt", file="inputs/from_file.txt", sha256="2" * 64)
_WHOLE = MANIFEST.model_copy(update={"pictures": [PICTURE] * 3, "grid": _GRID, "inputs": [_INPUT]})
EXAMPLES = [
    path.read_bytes() for folder in (JOBS, HERE / "reference/cases") for path in sorted(folder.glob("*.json"))
] + [_WHOLE.to_yaml().encode(), json.dumps(RECORD).encode(), *HOSTILE]

Pairs = list[tuple[str, Any]]  # a field may stand twice
_YAML_WORDS = {"NaN": ".nan", "Infinity": ".inf", "-Infinity": "-.inf"}
_SLIPS = ["", ",", "}", "]", "[", "\t", "\n", "\r", ": ", "&a ", "*a", "!!str ", "<<: ", "---", "...", "'", '"', "\0"]


def _nearly(value: Any) -> st.SearchStrategy[Any]:
    """What a person writes who nearly has it: one off, another type, another spelling."""
    near: list[Any] = [str(value), [value], {"a": value}, None, f" {value}", f"{value}px"]
    if isinstance(value, int | float):
        near += [value + 1, value - 1, -value, value * 8, float(value), value + 0.5, bool(value), f"0x{value}"]
    return st.sampled_from(near)


@st.composite
def fields_of_a_job(draw: st.DrawFn) -> Pairs:
    """A good job with up to three slips, or anything that looks like a job, or a manifest."""
    pairs: Pairs = list(draw(st.one_of(good_jobs, job_like, damage.map(lambda changes: RECORD | changes))).items())
    for _ in range(draw(st.integers(0, 3)) if pairs else 0):
        at = draw(st.integers(0, len(pairs) - 1))
        name, value = pairs[at]
        match draw(st.sampled_from(["keep", "value", "nearly", "name", "twice"])):
            case "value":
                pairs[at] = name, draw(everything)
            case "nearly":
                pairs[at] = name, draw(_nearly(value))
            case "name":
                pairs[at] = draw(names), value
            case "twice":
                pairs.append((draw(st.sampled_from([name, name.replace("_", "-")])), value))
    return draw(st.permutations(pairs)) if len(pairs) < 10 else pairs


def _in_json(draw: st.DrawFn, pairs: Pairs) -> str:
    ascii_only, space = draw(st.booleans()), draw(st.sampled_from(["", " ", "\n", "\r\n  ", "\t"]))
    written = [f"{json.dumps(k)}:{space}{json.dumps(v, ensure_ascii=ascii_only)}" for k, v in pairs]
    return "{" + space + f",{space}".join(written) + space + "}"


def _in_yaml(draw: st.DrawFn, pairs: Pairs) -> str:
    quoting: list[Callable[[str], str]] = [
        str,
        json.dumps,
        lambda s: "'" + s.replace("'", "''") + "'",
        lambda s: "|\n  " + s.replace("\n", "\n  "),
        lambda s: ">-\n   " + s.replace("\n", "\n\n   "),
    ]
    lines = []
    for key, value in pairs:
        if isinstance(value, str):
            written = draw(st.sampled_from(quoting))(value)
        else:
            written = json.dumps(value)  # a flow of braces and brackets, where it isn't a single word
            written = _YAML_WORDS.get(written, written)
        before = draw(st.sampled_from([""] * 20 + ["&a ", "!!str ", "! ", "*a "]))
        behind = draw(st.sampled_from([""] * 6 + ["  # why", "#", " ", "\n# why", "\n\n"]))
        lines.append(f"{draw(st.sampled_from(quoting[:3]))(key)}: {before}{written}{behind}")
    return "\n".join(lines) + "\n"


@st.composite
def job_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file's name and bytes: one job or several, in any of the ways to write them, sometimes with a slip."""
    jobs = draw(st.lists(fields_of_a_job(), min_size=1, max_size=4))
    extension = draw(st.sampled_from(EXTENSIONS))
    if extension == "json" or draw(st.integers(0, 3)) == 0:  # JSON is nearly YAML
        written = [_in_json(draw, pairs) for pairs in jobs]
        content = draw(st.sampled_from(["[%s]", "%s"])) % draw(st.sampled_from([",", "\n", ",\n"])).join(written)
    else:
        written = [_in_yaml(draw, pairs) for pairs in jobs]
        if draw(st.booleans()):
            content = draw(st.sampled_from(["---\n", "...\n---\n", "--- # next\n"])).join(written)
        else:
            content = "".join("- " + job.strip().replace("\n", "\n  ") + "\n" for job in written)
    if draw(st.integers(0, 2)) == 0:
        at = draw(st.integers(0, len(content)))
        content = content[:at] + draw(st.sampled_from(_SLIPS)) + content[at + draw(st.integers(0, 2)) :]
    encoding = draw(st.sampled_from(["utf-8"] * 20 + ["utf-8-sig", "utf-16", "latin-1"]))
    return f"job.{extension}", content.encode(encoding, "surrogatepass" if encoding[:3] == "utf" else "replace")
