"""The page's table of a study."""

import re
from html import escape, unescape
from urllib.parse import quote

from harness import FakeClock, drop_job
from test_cells import SMALL, Start, done
from test_web import Visitor
from tests_support import drain

from sdbatch.job.reader import parse
from sdbatch.storage.root import Root
from sdbatch.web.fields import filled_by, to_yaml

EVIL = "<script>alert(1)</script>"


def headers(text: str) -> list[str]:
    return [unescape(found) for found in re.findall(r'<th scope="(?:col|row)"[^>]*>(.*?)</th>', text)]


def test_a_study_is_a_table_of_two_fields_that_the_visitor_chooses(root: Root, clock: FakeClock, start: Start) -> None:
    text = f"{SMALL}matrix:\n  seed: [1, 2]\n  scale: [5, 7.5]\n  prompt: [a truck, '{EVIL}']\n"
    drop_job(root, "study.yaml", text)
    drain(start(), clock)
    visitor, job = Visitor(root), done(root).name
    page = visitor.get(f"/study/{job}").text
    assert headers(page) == ["scale ↓  seed →", "1", "2", "5", "7.5"]
    assert page.count("/picture/jobs/done/") == 8
    assert EVIL not in page
    assert [page.count(f'text-break">{label}</span>') for label in ("a truck", escape(EVIL))] == [4, 4]
    page = visitor.get(f"/study/{job}?across=prompt&down=&scale=5&seed=2").text
    assert headers(page) == ["prompt →", "a truck", EVIL, ""]
    assert page.count("/picture/jobs/done/") == 2
    assert f"/study/{job}" in visitor.get(f"/picture/jobs/done/{job}/samples/00003.png").text


def test_a_job_that_is_no_study_has_no_table(root: Root, clock: FakeClock, start: Start) -> None:
    drop_job(root, "a.yaml", f"{SMALL}prompt: a\n")
    drain(start(), clock)
    Visitor(root).get(f"/study/{done(root).name}", 404)
    Visitor(root).get("/study/" + quote("../x", safe=""), 404)


def test_the_form_takes_lists_and_ranges_of_what_varies(root: Root) -> None:
    text = to_yaml("txt2img", {"prompt": "a truck", "matrix": "seed: 1..3\r\nscale: [5, 7.5]"})
    (parsed,) = parse(text.encode(), "a.yaml")
    assert len(parsed.template.cells()) == 6
    assert filled_by(text, "a.yaml")[1]["matrix"] == "seed: 1..3\nscale:\n- 5\n- 7.5\n"
    assert 'name="matrix"' in Visitor(root).get("/new").text
    assert to_yaml("txt2img", {"prompt": "a truck"}) == "prompt: a truck\n"
