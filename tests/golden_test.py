"""Numbers are what they were, see golden.py."""

import json

import numpy as np
import pytest

import golden

pytestmark = pytest.mark.exact

RENEW = "; if that is meant, write golden.json anew by: python tests/golden.py"
RECORD = json.loads(golden.FILE.read_text())
# Elsewhere the last bits differ, and with them a step of a solver or of training here and there.
IS_SAME_MACHINE = RECORD["machine"] == golden.machine()


def leaves(record, name=""):
    """The numbers and words of a record, each with its place."""
    if isinstance(record, dict):
        for key, value in record.items():
            yield from leaves(value, f"{name}/{key}")
    else:
        yield name, record


@pytest.mark.slow
def test_solutions_are_what_they_were():
    recorded, found = RECORD["fits"], golden.fits()
    assert recorded.keys() == found.keys()
    for name, was in recorded.items():
        now = found[name]
        assert now["status"] == was["status"], name + RENEW
        # What is certified stops somewhere within its gap; the others go on to rounding.
        is_certified = np.equal(was["status"], "certified")
        slack = np.where(is_certified, np.maximum(1e-12, was["relative_gap"]), 1e-9)
        off = np.abs(np.divide(now["objective"], was["objective"]) - 1)
        assert (off <= (1e-12 if IS_SAME_MACHINE else slack)).all(), name + RENEW
        if IS_SAME_MACHINE:
            assert now["passes"] == was["passes"], name + RENEW


@pytest.mark.slow
@pytest.mark.parametrize("part", ["cross_validation", "evaluated"])
def test_scores_are_what_they_were(part):
    recorded, found = dict(leaves(RECORD[part])), dict(leaves(getattr(golden, part)()))
    assert recorded.keys() == found.keys()
    for name, was in recorded.items():
        np.testing.assert_allclose(found[name], was, rtol=1e-6, err_msg=name + RENEW)


@pytest.mark.slow
def test_no_more_is_compiled_than_was():
    recorded, found = RECORD["compilations"], golden.compilations()
    assert recorded.keys() == found.keys()
    for name, was in recorded.items():
        assert found[name] <= was, name + RENEW


def test_a_coded_file_is_what_it_was():
    assert golden.coded() == RECORD["coded"], "files of others could not be decoded" + RENEW


@pytest.mark.slow
@pytest.mark.parametrize("part", ["trained", pytest.param("runs", marks=pytest.mark.slow)])
def test_trained_parameters_are_what_they_were(part):
    found = getattr(golden, part)()
    for name, was in RECORD[part].items():
        if IS_SAME_MACHINE:
            assert found[name] == was, name + RENEW
        else:
            np.testing.assert_allclose(found[name], was, rtol=1e-3, atol=1e-4, err_msg=name + RENEW)
