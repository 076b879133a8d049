"""owner.py - what a Work or a Pending asks, when it is not one op of pccl but ends with some: Described."""

from __future__ import annotations

from pccl.torch.rendezvous import Member

__all__ = ["Described"]


class Described:
    """The owner of what is described by these words; there is nothing to cancel."""

    def __init__(self, member: Member, words: str) -> None:
        self._member = member
        self._words = words

    def check_pid(self) -> None:
        """Raises ForkError in a forked child."""
        self._member.comm._runtime.check_pid()

    def describe_token(self, token: int) -> str:
        """In words."""
        return self._words

    def cancel_token(self, token: int) -> bool:
        """Refused."""
        return False

    def waited(self, token: int, begin_ns: int) -> None:
        """Counted as a wait for an op: no thread of the user's waits for the ops behind it."""
        self._member.comm._runtime.waited(token, begin_ns)
