"""The process around an engine: start-up, message loop, supervision.

Gateway side (no torch): `pool`, `process`, `frames`, `lineage`, `pacing`, `failures`, `messages`.
In the child: `forkserver`, `main`, `loop`, `channel`, `hosts`, `native`, `dummy`, `watch`.
"""
