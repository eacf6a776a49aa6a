"""A rank's half: the lanes that move parts between KV memory, arena and remote store."""
