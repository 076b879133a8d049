"""fenced.py - what is in flight and owns memory: its cancel returns only when nothing touches that memory any more."""

from __future__ import annotations

from typing import TypeVar

from pccl.errors import HungError, Timeout
from pccl.work import Pending

__all__ = ["Fenced"]

T = TypeVar("T")


class Fenced(Pending[T]):
    """A fetch or a push."""

    __slots__ = ()

    def _cancel(self, what: str, timeout: float) -> bool:
        """Ends it and waits for the end: False if it had ended already, or ended well meanwhile. HungError if the
        engine does not answer within `timeout` seconds: then the memory stays borrowed.
        """
        self._owner.check_pid()
        if self.done():
            return False
        self._owner.cancel_token(self._token)
        try:
            self._ended(timeout)
        except Timeout as error:
            raise HungError(f"the {what} did not end within {timeout:g} s of its cancellation", op=error.op) from None
        return self._error is not None
