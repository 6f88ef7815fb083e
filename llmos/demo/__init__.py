"""`llmos demo`: the whole life of a language model in three acts."""
