"""Stage two at work: the inputs of a fit, the fits of every split, and the runs that they leave."""
