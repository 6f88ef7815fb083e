"""A whole system in a backup, and back: three databases and the object store. How to use it: docs/operations.md."""
