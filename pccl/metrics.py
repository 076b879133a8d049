"""metrics.py - `Communicator.stats` as Prometheus metrics, served over HTTP or collected by a registry of one's own.

    import pccl.metrics

    server = pccl.metrics.serve(comm, 9400)          # http://127.0.0.1:9400/metrics
    registry.register(pccl.metrics.Collector(comm))  # or in a registry that is served already

Every metric has the labels run and group; those of links also have the peer's short id, and only of links that are
there now, so labels do not pile up as peers come and go. What is not known yet is absent. Wants `pip install
pccl[eyes]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pccl.errors import ArgumentError, PcclError
from pccl.types import LOSS_UNKNOWN, short_id

try:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector as _Collector
except ImportError:
    raise ImportError("pccl.metrics wants prometheus-client: pip install pccl[eyes]") from None

if TYPE_CHECKING:
    from pccl.communicator import Communicator

__all__ = ["Collector", "Server", "serve"]

_COUNTERS = {
    "ops_retried": ("pccl_peer_op_retries", "Times that an op was started again after a loss."),
    "sent_bytes": ("pccl_peer_sent_bytes", "Sent on data links: payload and headers, sent again included."),
    "received_bytes": ("pccl_peer_received_bytes", "Received on data links."),
    "transfer_sent_bytes": ("pccl_peer_transfer_sent_bytes", "Payload of transfers that others fetched."),
    "transfer_received_bytes": ("pccl_peer_transfer_received_bytes", "Payload of transfers that were fetched."),
    "relayed_bytes": ("pccl_peer_relayed_bytes", "Passed on between peers that have no link."),
    "frames_resent": ("pccl_peer_frames_resent", "Frames sent again after a stream was lost."),
    "frames_copied": ("pccl_peer_frames_copied", "Frames sent on a second stream because the first was late."),
    "frames_corrupt": ("pccl_peer_frames_corrupt", "Frames whose checksum was wrong."),
}
_GAUGES = {
    "streams": ("pccl_peer_streams", "Open connections of all links."),
    "ops_pending": ("pccl_peer_ops_pending", "Ops in flight."),
    "transfers_pending": ("pccl_peer_transfers_pending", "Fetches in flight."),
    "transfers_served": ("pccl_peer_transfers_served", "Fetches of others that are being served."),
    "pool_bytes": ("pccl_peer_pool_bytes", "Scratch and backup memory held."),
    "parked_bytes": ("pccl_peer_parked_bytes", "Received for ops that were not called yet."),
}
#: Not known while 0.
_LINES = {
    "up_bytes_per_s": ("pccl_peer_line_up_bytes_per_second", "What the line of this peer carries away, at least."),
    "down_bytes_per_s": ("pccl_peer_line_down_bytes_per_second", "What the line of this peer brings, at least."),
}


class Collector(_Collector):
    """Metrics of one communicator. Collecting never blocks; of a closed communicator `pccl_peer_up` 0 is left."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        settings = comm._runtime.settings
        self._common = {"run": settings.run, "group": str(settings.group)}

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering reads nothing."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """One metric after the other, all of one moment."""
        try:
            stats = self._comm.stats()
            epoch, boundary, world_size = self._comm.epoch, self._comm.boundary, self._comm.world_size
        except PcclError:
            yield self._gauge("pccl_peer_up", "1 while the communicator can be used.", 0)
            return
        yield self._gauge("pccl_peer_up", "1 while the communicator can be used.", 1)
        yield self._gauge("pccl_peer_epoch", "The epoch in which an op called now would run.", epoch)
        yield self._gauge("pccl_peer_boundary", "Boundaries that the run has passed here.", boundary)
        yield self._gauge("pccl_peer_world_size", "Peers that take part in an op called now.", world_size)
        for field, (name, help_text) in _COUNTERS.items():
            yield self._family(CounterMetricFamily, name, help_text, [((), stats[field])])
        for field, (name, help_text) in _GAUGES.items():
            yield self._gauge(name, help_text, stats[field])
        for field, (name, help_text) in _LINES.items():
            if stats[field]:
                yield self._gauge(name, help_text, stats[field])
        yield from self._ops_and_waits(stats)
        yield from self._links(stats["links"])

    def _ops_and_waits(self, stats: dict[str, Any]) -> Iterator[Metric]:
        ops = [((op["kind"], op["outcome"]), op["count"]) for op in stats["ops"]]
        yield self._family(CounterMetricFamily, "pccl_peer_ops", "Ops that have ended.", ops, "kind", "outcome")
        for field, name, what in (
            ("count", "pccl_peer_waits", "Times that a thread of the program was blocked."),
            ("seconds", "pccl_peer_wait_seconds", "For how long."),
        ):
            waits = [((wait["what"],), wait[field]) for wait in stats["waits"]]
            yield self._family(CounterMetricFamily, name, what, waits, "what")

    def _links(self, links: list[dict[str, Any]]) -> Iterator[Metric]:
        def of(field: str, scale: float = 1.0, unknown: int | None = None) -> list[tuple[tuple[str, ...], float]]:
            known = [link for link in links if link[field] != unknown]
            return [((short_id(link["peer"]),), link[field] * scale) for link in known]

        for kind, name, help_text, values in (
            (CounterMetricFamily, "sent_bytes", "Sent on the link.", of("sent_bytes")),
            (CounterMetricFamily, "received_bytes", "Received on the link.", of("received_bytes")),
            (GaugeMetricFamily, "streams", "Connections in use.", of("streams")),
            (
                GaugeMetricFamily,
                "unacked_frames",
                "Frames that the other side has not acknowledged.",
                of("unacked_frames"),
            ),
            (GaugeMetricFamily, "rtt_seconds", "Round trip.", of("rtt_us", 1e-6, 0)),
            (GaugeMetricFamily, "bytes_per_second", "What it was measured to carry.", of("bytes_per_s", 1, 0)),
            (GaugeMetricFamily, "loss_ratio", "Packets sent again, of those sent.", of("loss_ppm", 1e-6, LOSS_UNKNOWN)),
        ):
            yield self._family(kind, f"pccl_peer_link_{name}", help_text, values, "peer")

    def _gauge(self, name: str, help_text: str, value: float) -> Metric:
        return self._family(GaugeMetricFamily, name, help_text, [((), value)])

    def _family(
        self,
        kind: type[CounterMetricFamily | GaugeMetricFamily],
        name: str,
        help_text: str,
        values: Iterable[tuple[tuple[str, ...], float]],
        *labels: str,
    ) -> Metric:
        family = kind(name, help_text, labels=[*self._common, *labels])
        for own, value in values:
            family.add_metric([*self._common.values(), *own], value)
        return family


class Server:
    """An HTTP server of one communicator's metrics; a context manager. `port`: where it listens."""

    def __init__(self, comm: Communicator, port: int, address: str) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Collector(comm))
        try:
            self._server, self._thread = start_http_server(port, address, registry)
        except OverflowError as error:
            raise ArgumentError(f"metrics: port {port!r}: {error}") from None
        except OSError as error:
            raise PcclError(f"metrics cannot be served on {address}:{port}: {error}") from None
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it. Idempotent; blocks for a moment."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve(comm: Communicator, port: int, address: str = "127.0.0.1") -> Server:
    """Serves the communicator's metrics at http://address:port/metrics, on a thread of its own; port 0: any free one.

    Whoever reaches the address may read them. The server goes on after the communicator was closed, until its `close`.
    Raises ArgumentError if there is no such port, PcclError if it cannot listen there.
    """
    return Server(comm, port, address)
