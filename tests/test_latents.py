import numpy as np
import pytest
from reference_model import CASES, draw_all, reference_case
from tests_support import REFERENCE

RELATIVE = 1e-4  # what the reference calls reproduced


def test_there_are_twelve_reference_cases() -> None:
    assert len(CASES) == 12


LONG = ("seed-img2img", "seed-txt2img")  # whose pictures test_reference.py compares


@pytest.mark.parametrize(
    "name", [pytest.param(case, marks=pytest.mark.thorough) if case in LONG else case for case in CASES]
)
def test_final_latents_are_those_of_the_original_scripts(name: str) -> None:
    expected = np.load(REFERENCE / "expected" / name / "latents.npz")["latents"]
    drawn = np.stack([one.latents.numpy() for one in draw_all(*reference_case(name))])
    assert drawn.shape == expected.shape
    assert np.abs(drawn - expected).max() / np.abs(expected).max() < RELATIVE
