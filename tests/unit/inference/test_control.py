"""What a replica and its agent say to each other fits in one message."""

from __future__ import annotations

from services.inference.control import MAX_ADAPTER_REASON, MAX_MESSAGE_BYTES, Phase, Report, decode_report, encode


def test_a_report_of_as_many_refused_adapters_as_there_may_be_fits_in_one_message() -> None:
    failed = {f"{'n' * 120}-{number}@1": "r" * MAX_ADAPTER_REASON for number in range(256)}
    report = Report(Phase.ready, failed_adapters=failed)
    assert len(encode(report)) < MAX_MESSAGE_BYTES
    assert decode_report(encode(report)) == report
