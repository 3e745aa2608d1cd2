"""Bytes that were job files once, or never: for a parser that must answer anything."""

import random

from job_files import EXAMPLES

from sdbatch.job.reader import MAX_BYTES, MAX_MANIFEST_BYTES

TOKENS = [
    *rb"""
    --- ... - : ? & * ! !! % # > >- | |- @ ` ~ ' " "" { } [ ] , \ \u \ud800 \x \N // /*
    &a *a <<: !!str !!python/name:os.system !<x> %YAML %TAG
    null true no NaN -Infinity .nan .inf 1e3 1e400 -0 007 0o7 0x1F 1_000 1:30 4294967296
    prompt: "prompt":"a" seed: H:510 init_img: strength: laion400m: plms: follow_up: job:{} pictures:[] inputs:
    """.split(),
    *b"- |: |? | #| |  |\n|\r|\r\n|\t|---\n|...\n|\n  |sdbatch_manifest: 1\n|prompt: a\n|H: 510\n|job: {}\n".split(
        b"|"
    ),
    *(c.encode() for c in ("\0", "\x7f", "\x1b[31m", "\x85", "\u2028", "\u202e", "\ufeff", "🚚", "9" * 400)),
    *(b"\xff\xfe", b"\xfe\xff", b"\x80", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"),
]
UNPRINTABLE = dict.fromkeys({*range(32), *range(127, 160)} - set(b"\t\n\r\x85"))


def mangled(chance: random.Random) -> bytes:
    """Noise, a damaged job file, or one piece of one over and over."""
    data = chance.choices((noise, damaged, repeated), (10, 90, 1))[0](chance)
    if chance.random() < 0.8:  # made printable, or most would be refused before they are parsed
        data = data.decode("utf-8", "ignore").translate(UNPRINTABLE).encode()
    return data


def noise(chance: random.Random) -> bytes:
    """Bytes without sense, or words of the languages without sense."""
    if chance.random() < 0.5:
        return chance.randbytes(chance.randrange(200))
    return b"".join(chance.choices(TOKENS, k=chance.randrange(1, 30)))


def damaged(chance: random.Random) -> bytes:
    """A real or hostile job file with some damage."""
    data = bytearray(chance.choice(EXAMPLES))
    for _ in range(chance.choice((1, 1, 2, 3, 5, 10))):
        at = chance.randrange(len(data) + 1)
        end = at + chance.choice((1, 2, 5, 20, 100, len(data)))
        match chance.randrange(7):
            case 0:
                data[at:at] = chance.choice(TOKENS)
            case 1:
                data[at:end] = chance.choice(TOKENS)
            case 2:
                data[at : at + 1] = chance.randbytes(1)
            case 3:
                data[at : at + 1] = bytes(byte ^ 1 << chance.randrange(7) for byte in data[at : at + 1])
            case 4:
                del data[at:end]
            case 5:
                data[at:at] = data[at:end]
            case 6:
                other = chance.choice(EXAMPLES)
                cut = chance.randrange(len(other))
                data[at:end] = other[cut : cut + chance.choice((5, 50, len(other)))]
    return bytes(data)


def repeated(chance: random.Random) -> bytes:
    """A file about as large as may be, of one piece again and again: what is slow, if anything is."""
    data = damaged(chance) if chance.random() < 0.5 else chance.choice(EXAMPLES)
    lines = data.splitlines(keepends=True) or [b"- "]
    at = chance.randrange(len(lines))
    piece = chance.choice((data, b"---\n" + data, lines[at], b"".join(lines[at:][:4]), lines[at][:9], noise(chance)))
    most = (MAX_MANIFEST_BYTES if b"sdbatch_manifest:" in data[:1024] else MAX_BYTES) - len(data)
    start = b"".join(lines[:at])
    return start + piece * (most // (len(piece) or 1)) + b"".join(lines[at:])
