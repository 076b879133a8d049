"""An engine P in a process of its own: `vllm_peer.py ADDRESS SECRET` tells of two prompts on its output, and waits."""

from __future__ import annotations

import json
import sys
import threading

from integration.vllm_caches import engine, settings

PROMPT = [7 * at % 101 for at in range(30)]


def main() -> None:
    address, secret = sys.argv[1:3]
    p = engine(settings(address, secret, 0), 1, "full")
    for name, prompt in (("good", PROMPT), ("lost", [1, *PROMPT[1:]])):
        p.add(name, prompt, 1, {"do_remote_decode": True})
    while len(p.params) < 2:
        p.step()
    p.step()
    print(json.dumps([p.params["good"], p.params["lost"]]), flush=True)
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    while not over.wait(0.01):
        p.step()


if __name__ == "__main__":
    main()
