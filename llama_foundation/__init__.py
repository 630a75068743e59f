"""What both packages stand on: typed errors, configuration, files that appear whole or not at all, keyed hashes."""
