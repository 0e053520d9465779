"""`make bench`: P1, P2 and the price of consent with their spread, CPU by process, and one JSON line at the end."""

import argparse
import asyncio
import json
import statistics
import sys

from bench.decide import Lap, figures, measure


def main() -> int:
    """Measure and print; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved laps (default 5)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement (default 6)")
    asked = parser.parse_args()
    laps = asyncio.run(
        measure(
            rounds=asked.rounds,
            duration_s=asked.seconds,
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        )
    )
    print(table(laps))
    print(json.dumps({name: figure.to_json() for name, figure in figures(laps).items()}))
    return 0


def table(laps: list[Lap]) -> str:
    """Figures, answers and CPU µs a call, for people."""
    found = figures(laps)
    names = laps[0].comity.cpu_us
    cpu = {name: statistics.median(t.comity.cpu_us[name] for t in laps) for name in names}
    answers: dict[str, int] = {}
    for lap in laps:
        for label, count in lap.comity.answers.items():
            answers[label] = answers.get(label, 0) + count
    lines = [
        f"P1  Decide/s ÷ empty calls/s            {found['P1']}   first aim 0.22, goal 0.40",
        f"    CPU a Decide ÷ CPU of an empty call  {found['P1_cpu']}   first aim 5, goal 2.8",
        f"P2  Decide/s ÷ naive Decide/s            {found['P2']}   first aim 2.0, goal 3.5",
        f"    share of Decide/s that reading consent for each takes  {found['consent_read_cost']}   at most 0.15",
        f"answers: {', '.join(f'{label} {count}' for label, count in sorted(answers.items()))}",
        "CPU µs a Decide by process (median): " + ", ".join(f"{name} {value:.0f}" for name, value in cpu.items()),
        f"CPU µs an empty call: {statistics.median(t.floor.cpu_us_total for t in laps):.0f}",
        f"latency of Decide, ms: p50 {statistics.median(t.comity.latency_ms_p50 for t in laps):.1f}, "
        f"p99 {statistics.median(t.comity.latency_ms_p99 for t in laps):.1f}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
