"""The vocabulary: every word that crosses a boundary between processes.

Commands are imperatives (`SubmitJob`), events are past tense (`AttemptStarted`), states are nouns (`JobState`).
"""
