"""The job types, one module each, with `run(context) -> list[MadeOutput]`."""
