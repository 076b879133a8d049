"""``pccl weights``: looks into the payloads that a publisher's or relay's log keeps."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import click

from pccl.cli._units import format_bytes


@click.group("weights")
def command() -> None:
    """Look into payloads of pccl.weights."""


@command.command("inspect")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--blocks", is_flag=True, help="A line for every block.")
@click.option("--key", help="The publisher's public key in hex: the signature is checked.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def inspect(file: Path, blocks: bool, key: str | None, as_json: bool) -> None:
    """Show what a payload says, and check every chunk of it. Exit code 1: it is damaged, or not signed by the key."""
    found = facts(file, None if key is None else bytes.fromhex(key))
    if not blocks:
        del found["block_list"]
    if as_json:
        click.echo(json.dumps(found))
        return
    for name, value in found.items():
        if name == "block_list":
            for row in value:
                click.echo(
                    "  block {block:>6}  {codec:<9} {changed:>9} of {elements:>9}  {bytes:>9} bytes".format(**row)
                )
        else:
            click.echo(f"{name.replace('_', ' '):<18} {value}")


def facts(file: Path, public: bytes | None) -> dict[str, Any]:
    """Everything that can be said without the schema."""
    from pccl.weights import codec
    from pccl.weights.certificate import check_signature
    from pccl.weights.files import mapped
    from pccl.weights.payload import Payload

    payload = Payload(mapped(file))
    payload.check_chunks()
    manifest = payload.manifest
    certificate = manifest.certificate
    if public is not None:
        check_signature(public, certificate, manifest.signature)
    rows = [(number, codec.describe(block)) for number, block in payload.blocks()]
    changed = sum(info.changed for _, info in rows)
    codecs = Counter(info.codec.name for _, info in rows)
    return {
        "kind": "delta" if manifest.is_delta else "fold",
        "from": f"{payload.base.version} of lineage {payload.base.lineage.hex()[:16]}",
        "to": f"{certificate.version} of lineage {certificate.lineage.hex()[:16]}",
        "epoch": certificate.epoch,
        "schema": certificate.schema.hex()[:16],
        "state": certificate.state.hex()[:16],
        "signature": "none" if not manifest.signature else "right" if public is not None else "not checked",
        "size": format_bytes(payload.nbytes),
        "chunks": f"{len(manifest.ends)}, all right",
        "blocks": f"{len(rows)} of {len(manifest.digests)}",
        "codecs": ", ".join(f"{name} {count}" for name, count in sorted(codecs.items())),
        "changed": changed,
        "bits_per_changed": round(8 * payload.nbytes / changed, 2) if changed else 0.0,
        "block_list": [
            {"block": n, "codec": i.codec.name, "changed": i.changed, "elements": i.elements, "bytes": i.nbytes}
            for n, i in rows
        ],
    }
