"""What went wrong with a trial is told apart: each kind has a policy of its own."""

from __future__ import annotations

import errno
import os

import pytest

from dlnn_search.errors import (
    DataError,
    DivergedError,
    OutageError,
    StorageError,
    StudyError,
)
from dlnn_search.worker.verdict import POLICIES, failure_of


class ResourceExhaustedError(Exception):
    """Named as TensorFlow's, which takes seconds to import."""


class InternalError(Exception):
    """Named as TensorFlow's."""


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DivergedError("Diverged in epoch 2: the loss is nan."), "diverged"),
        (ResourceExhaustedError("OOM when allocating tensor of shape [9]\nhints"), "out_of_memory"),
        (InternalError("Failed call to cuInit: CUDA_ERROR_OUT_OF_MEMORY"), "out_of_memory"),
        (InternalError("Dst tensor is not initialized."), "out_of_memory"),
        (RuntimeError("CUDNN_STATUS_ALLOC_FAILED"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (os_error(errno.ENOMEM), "out_of_memory"),
        (caused(StudyError("The builder failed"), MemoryError()), "out_of_memory"),
        (StudyError("The space of 's' failed: ZeroDivisionError"), "bug"),
        (ZeroDivisionError("division by zero"), "bug"),
        (os_error(errno.EACCES), "bug"),
        (OutageError("The disk is full"), None),
        (os_error(errno.ENOSPC), None),
        (os_error(errno.ESTALE), None),
        (caused(DataError("Cannot prepare mnist"), os_error(errno.EIO)), None),
        (ResourceExhaustedError("/tmp/x; No space left on device"), None),
        (DataError("Expected the pictures in '/data', got nothing."), None),
    ],
)
def test_each_error_has_its_kind(error: Exception, kind: str | None) -> None:
    failure = failure_of(error, had_data=True)
    assert failure.kind == kind
    assert failure.reason
    assert (failure.traceback is not None) == (kind == "bug")


def test_data_that_were_never_there_stop_the_worker_instead() -> None:
    error = DataError("Expected the pictures in '/data', got nothing.")
    with pytest.raises(DataError) as caught:
        failure_of(error, had_data=False)
    assert caught.value is error


def test_a_database_that_will_not_heal_stops_the_worker() -> None:
    error = StorageError("password authentication failed")
    with pytest.raises(StorageError) as caught:
        failure_of(error, had_data=True)
    assert caught.value is error


def test_what_was_handled_on_the_way_is_not_the_cause() -> None:
    try:
        try:
            raise os_error(errno.ENOSPC)
        except OSError:
            raise ValueError("no number") from None
    except ValueError as error:
        assert failure_of(error, had_data=True).kind == "bug"


def test_the_reason_of_a_shortage_of_memory_is_its_first_line() -> None:
    error = ResourceExhaustedError(f"OOM when allocating {'x' * 900}\nthe graph")
    reason = failure_of(error, had_data=True).reason
    assert "OOM when allocating" in reason
    assert len(reason) <= 500 and "graph" not in reason


def test_a_bug_s_traceback_names_the_line() -> None:
    try:
        raise KeyError("rate")
    except KeyError as error:
        traceback = failure_of(error, had_data=True).traceback
    assert traceback is not None and 'raise KeyError("rate")' in traceback


def test_what_the_config_is_to_blame_for_is_not_tried_again() -> None:
    assert POLICIES["diverged"].attempts == POLICIES["bug"].attempts == 1
    assert POLICIES["out_of_memory"].attempts == POLICIES["lost"].attempts == 3
