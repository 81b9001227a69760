"""Stage one: a data set and an encoder into a cache; resumable, by one process or many."""
