"""The protocol between the gateway and a worker: one file per direction, msgpack frames over a socket pair.

A frame is a 4-byte little-endian length and one message. Both ends are of the same build, so fields go by position.
"""
