"""A client that submits jobs one after the other, whatever it is answered."""

from __future__ import annotations

import threading

import httpx


class Posting:
    """Begins at once, on a thread of its own. Keeps the ids of what was accepted, and the answers to all else.

    `pause_s`: between two jobs, where so many are to be done that they must not be too many.
    """

    def __init__(self, http: httpx.Client, pause_s: float = 0) -> None:
        self.accepted: list[str] = []
        self.refused: list[httpx.Response] = []
        self._http = http
        self._pause_s = pause_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(60)

    def check_refusals(self) -> None:
        """Whatever was not accepted was told to come again, in a sentence."""
        assert {answer.status_code for answer in self.refused} <= {503}
        for answer in self.refused:
            assert int(answer.headers["Retry-After"]) >= 1
            assert answer.json()["error"]["message"].rstrip(".").count(" ") >= 3

    def _run(self) -> None:
        while not self._stopping.is_set():
            answer = self._http.post("/v1/jobs", json={"type": "probe"})
            if answer.status_code == 202:
                self.accepted.append(answer.json()["id"])
            else:
                self.refused.append(answer)
            self._stopping.wait(self._pause_s)
