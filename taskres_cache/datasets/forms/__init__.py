"""Data sets in other forms than class folders: lists, archives, shards, exports of labelling tools."""
