"""Each check refuses nearly every answer that differs from the course's own at one place (tests/mutants.py)."""

import mutants
import pytest
from test_checks import ALL

pytestmark = pytest.mark.slow

REFUSED = 0.9  # of an answer's mutants, those counted that change no result at all


@pytest.mark.parametrize("check", [check for _, _, check in ALL], ids=[cell_id for _, cell_id, _ in ALL])
def test_mutants_of_an_answer_are_refused(check, capsys):
    number, survived = mutants.survivors(check)
    with capsys.disabled():
        print(f"\n{check.__name__}: {number - len(survived)} of {number} mutants refused", *survived, sep="\n  ")
    assert len(survived) <= max(1, (1 - REFUSED) * number), "\n".join(survived)
