"""How items are run: in this process, in worker processes, in shards."""
