"""Signals that ask to stop."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from harness.errors import UserError
from harness.interrupts import Interrupted, Stop


def test_outside_of_saving_a_signal_ends_what_runs():
    with pytest.raises(Interrupted, match="SIGTERM"), Stop():
        os.kill(os.getpid(), signal.SIGTERM)


def test_an_error_that_compiled_code_makes_of_a_signal_is_the_signal():
    with pytest.raises(Interrupted, match="SIGTERM") as raised, Stop():
        with contextlib.suppress(Interrupted):  # as an extension does that clears what was raised inside it
            os.kill(os.getpid(), signal.SIGTERM)
        raise UserError("returned a result with an exception set")
    assert isinstance(raised.value.__cause__, UserError)


def test_an_error_while_saving_is_told_although_a_stop_was_asked():
    with pytest.raises(UserError, match="disk is full"), Stop() as stop:
        stop.saving = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        raise UserError("disk is full")


def test_handlers_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with contextlib.suppress(Interrupted), Stop():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
