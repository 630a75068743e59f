"""The shard format: the one contract between both packages, writer and reader side by side."""
