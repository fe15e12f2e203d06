"""Where models come from: short names, hub repositories, packages that carry weights; finding, fetching, checking.

`reference` understands what an operator wrote, `table` holds the short names, `packages` and `hub` fetch,
`hub_cache` looks without a network.
"""
