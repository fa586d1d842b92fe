"""Run the benchmarks and print their tables.

The machines that this runs on are noisy: candidates take turns, medians are compared, and only the
ratios of one run mean anything.
"""

from __future__ import annotations

import argparse

from . import chunks, forwarding, keys, layers, limits, parsers, policies, streams

BENCHMARKS = {
    "layers": layers.run,
    "keys": keys.run,
    "limits": limits.run,
    "parsers": parsers.run,
    "policies": policies.run,
    "streams": streams.run,
    "chunks": chunks.run,
    "forwarding": forwarding.run,
}


def main() -> None:
    """Read the arguments and run what they name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, to see that it runs")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"there is no benchmark {min(unknown)}")
    for name in arguments.names or BENCHMARKS:
        BENCHMARKS[name](quick=arguments.quick)


if __name__ == "__main__":
    main()
