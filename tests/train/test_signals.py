"""A first signal is noted, a second one is not held back, and the handlers found are restored."""

import os
import signal

import pytest

from lightconv_mt.train.signals import SignalFlag


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_gives_the_exit_code(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with SignalFlag() as flag:
        assert flag.exit_code == 0
        os.kill(os.getpid(), number)
        assert flag.received is number
        assert flag.exit_code == 128 + number
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(number) is before
