"""The suite catches what it is there for: faults planted in the source go red, one by one."""

from collections import Counter

import pytest

from tests.planted import FAULTS, plant, verdict


def test_every_room_has_faults_and_each_fits_the_source():
    rooms = {"strategies", "bodies", "files", "runtime", "tolerance", "verdicts"}
    assert set(Counter(fault.room for fault in FAULTS)) == rooms
    assert min(Counter(fault.room for fault in FAULTS).values()) >= 7
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    for fault in FAULTS:
        assert fault.before in fault.source(), f"{fault.name}: {fault.file} has no {fault.before!r}; say it anew"


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_goes_red(fault, tmp_path):
    plant(fault, tmp_path)
    status, words = verdict(fault, tmp_path)
    assert status == 1, words
    assert " failed" in words, words
