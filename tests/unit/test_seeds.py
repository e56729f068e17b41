"""Seeds by role: disjoint, whatever the study and the number."""

from __future__ import annotations

import pytest

from dlnn_search.config.training import ROLES, SPAN, Role, fresh_seeds, is_of, seed_of


def test_the_roles_of_studies_never_share_a_seed() -> None:
    seeds: dict[Role, set[int]] = {}
    for role in ROLES:
        seeds[role] = {
            seed_of(study, role, number)
            for study in ("tiny", "tiny-retune", "", "other")
            for number in [*range(2_000), SPAN - 1]
        }
        assert all(is_of(role, seed) for seed in seeds[role])
    assert len(set.union(*seeds.values())) == sum(map(len, seeds.values()))


def test_a_study_s_seeds_are_distinct_and_the_same_each_time() -> None:
    seeds = fresh_seeds("tiny", "test", 5_000)
    assert len(set(seeds)) == 5_000
    assert fresh_seeds("tiny", "test", 3) == seeds[:3]
    assert fresh_seeds("tiny", "test", 3) == [3_445_576, 3_445_577, 3_445_578]
    assert fresh_seeds("other", "test", 3) != seeds[:3]


def test_a_seed_that_was_used_for_something_else_is_left_out() -> None:
    first, second, third, fourth = fresh_seeds("tiny", "test", 4)
    assert fresh_seeds("tiny", "test", 2, {first, third}) == [second, fourth]


def test_seeds_fit_the_database_and_run_out_with_a_sentence() -> None:
    assert len(ROLES) * SPAN < 2**31
    with pytest.raises(ValueError, match=r"from 0 to 999,999, got 1,000,000"):
        seed_of("tiny", "test", SPAN)
