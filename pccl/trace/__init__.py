"""pccl.trace: what a peer did and when, as a file of its own, and the files of many peers as one picture.

`records` says what is written, `recorder` writes it (a queue, a thread, files of bounded size), `engine` is an engine
whose membership and links are recorded. `files` reads the files of a directory, `clocks` aligns the clocks of their
peers, `chrome` draws all of it for Perfetto; these three are pure and are what `pccl trace` does.
"""
