"""The simulator and fault injection, public, so that users test their own loops."""
