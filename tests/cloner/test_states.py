"""The table of a clone job's states."""

from __future__ import annotations

import itertools

import pytest

from cloner.states import ENDED, LEGAL, IllegalMove, JobState, moved


@pytest.mark.parametrize(("state", "to"), list(itertools.product(JobState, JobState)))
def test_every_move_is_legal_or_refused(state: JobState, to: JobState) -> None:
    if to in LEGAL[state]:
        assert moved(state, to) is to
    else:
        with pytest.raises(IllegalMove):
            moved(state, to)


def test_nothing_leaves_an_end_state() -> None:
    assert {JobState.COMPLETED, JobState.FAILED, JobState.STOPPED} == ENDED


def test_only_a_running_job_completes() -> None:
    assert [state for state in JobState if JobState.COMPLETED in LEGAL[state]] == [JobState.RUNNING]
