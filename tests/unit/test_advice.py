"""What is wrong with a search, and what to do about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from dlnn_search.results.advice import Facts, advice
from dlnn_search.results.status import StudyStatus
from dlnn_search.samplers.regions import Edge
from dlnn_search.storage.budget import BudgetUse
from dlnn_search.storage.trials import Failures
from dlnn_search.storage.workers import WorkerStatus


def worker(name: str = "host-1-aa", state: str = "training", **more: Any) -> WorkerStatus:
    plain = WorkerStatus(
        name=name,
        host="host",
        pid=1,
        state=state,
        silent_seconds=0.0,
        trial_number=1,
        epoch=1,
        epochs=9,
        share=0.0,
        value=None,
        images_per_second=100.0,
    )
    return dataclasses.replace(plain, **more)


def status(
    counts: dict[str, int],
    workers: Sequence[WorkerStatus] = (worker(),),
    failures: Sequence[Failures] = (),
    **more: Any,
) -> StudyStatus:
    n_done = sum(counts.get(key, 0) for key in ("complete", "pruned", "failed"))
    budget = sum(counts.values())
    plain = StudyStatus(
        name="mine",
        metric="accuracy",
        direction="maximize",
        budget=budget,
        counts=counts,
        workers=workers,
        best=None,
        mean_trial_seconds=None,
        use=BudgetUse(budget, n_done, 0, None, 0.0, None, 0.0, None, 0.0),
        control="run",
        control_reason=None,
        failures=failures,
    )
    return dataclasses.replace(plain, **more)


def only(facts: Facts) -> str:
    (sentence,) = advice(facts)
    return sentence


def diverged(n: int) -> Failures:
    return Failures("diverged", n, 3, "Diverged in epoch 1")


def test_a_search_that_is_well_gets_no_advice() -> None:
    assert advice(Facts(status({"complete": 20, "pruned": 10, "open": 5}))) == []


def test_trials_that_diverge_call_for_a_lower_learning_rate() -> None:
    told = only(
        Facts(
            status({"complete": 1, "failed": 3, "open": 6}, failures=[diverged(3)]),
            diverged_rates=[0.1, 0.02, 0.05],
            sound_rates=[0.004],
        )
    )
    assert told.startswith("3 of 4 trials diverged. Lower the upper end of the learning rate")
    assert "(those that diverged had 0.02 to 0.1; those that did not, 0.004)" in told


def test_a_few_trials_that_diverge_are_usual() -> None:
    assert not advice(Facts(status({"complete": 18, "failed": 2}, failures=[diverged(2)])))
    assert not advice(Facts(status({"failed": 1, "open": 9}, failures=[diverged(1)])))


def test_a_best_trial_on_the_edge_calls_for_a_wider_range() -> None:
    dropout = Edge("dropout", "upper", 0.5, 0.1, 0.5, (0.1, 0.7), n_others=2, n_near=1)
    assert only(Facts(status({"complete": 9, "open": 1}), edges=[dropout])) == dropout.words()


def test_open_trials_without_a_worker_call_for_one() -> None:
    told = only(Facts(status({"complete": 1, "open": 4}, workers=())))
    assert "No worker is running, and 4 of 5 trials are left" in told
    assert "dlnn-search start mine" in told and "dlnn-search worker mine" in told
    for quiet in ("pause", "stop"):
        assert not advice(Facts(status({"open": 4}, workers=(), control=quiet)))
    assert not advice(Facts(status({"complete": 4}, workers=())))


def test_workers_in_trouble_are_told_with_where_and_why() -> None:
    ill = worker(state="troubled", message="No space left.\nmore", host="b")
    assert only(Facts(status({"open": 4}, workers=[ill]))) == (
        "All workers on b cannot train now. They keep trying. Reason: No space left."
    )
    assert "1 of 2 workers on b cannot train now" in only(
        Facts(status({"open": 1}, [ill, worker()]))
    )


def test_workers_that_are_killed_again_and_again_hint_at_memory() -> None:
    running = status({"open": 4})
    assert "Signal 9 killed workers 3 times" in only(Facts(running, n_killed=3))
    assert not advice(Facts(running, n_killed=1))


def test_trials_out_of_memory_call_for_less_at_once() -> None:
    failed = Failures("out_of_memory", 1, 2, "OOM")
    counts = {"failed": 1, "open": 3}
    on_processor = only(Facts(status(counts, failures=[failed])))
    assert "batch size" in on_processor and on_processor.endswith("with fewer --workers.")
    on_gpu = only(Facts(status(counts, [worker(gpu="0")]), event_counts={"out_of_memory": 2}))
    assert "2 times" in on_gpu and on_gpu.endswith("with fewer --workers-per-gpu.")


def test_a_pruner_that_leaves_nothing_is_told() -> None:
    assert "20 of 21 trials were pruned" in only(Facts(status({"complete": 1, "pruned": 20})))
    assert not advice(Facts(status({"complete": 3, "pruned": 17})))


def test_a_worker_far_slower_than_the_others_is_told() -> None:
    workers = [worker("h-1-a"), worker("h-2-b"), worker("h-3-c", images_per_second=5.0)]
    assert "Worker c on host trains 5 images a second" in only(Facts(status({"open": 4}, workers)))
    assert not advice(Facts(status({"open": 4}, workers[1:])))  # of two, which one is right?


def test_trials_that_start_over_call_for_a_shared_folder() -> None:
    told = only(Facts(status({"open": 4}), event_counts={"started_over": 2}))
    assert "2 times" in told and "DLNN_SEARCH_FILES" in told


def test_a_study_that_a_bug_stopped_says_so() -> None:
    stopped = status({"open": 4}, control="stop", control_reason="Traceback (most recent ...)")
    assert "dlnn-search validate mine" in only(Facts(stopped))
