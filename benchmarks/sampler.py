"""Where the book's speed claims come from: `python benchmarks/sampler.py --help`. The same as `python -m ddimlib benchmark`."""

import sys

from ddimlib.__main__ import main

if __name__ == "__main__":
    sys.argv.insert(1, "benchmark")
    sys.exit(main())
