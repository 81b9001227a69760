"""Stage two: fit every split of a cache, measure and write the results, read them again, evaluate and predict."""
