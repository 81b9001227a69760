"""Stage one: encode a data set into a cache; resumable, by one process or many."""
