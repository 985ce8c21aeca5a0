"""The training command: trains a network by a Gin configuration.

python3 -m diffstride.examples.main --gin_config=cifar10.gin \
    --gin_bindings="train.workdir = 'runs/resnet18'"
"""

import sys

from diffstride.cli import STOPPED, published_help

if __name__ == "__main__":
    if {"-h", "--help"}.intersection(sys.argv[1:]):
        print(published_help(), end="")
        sys.exit()
    try:
        from diffstride.training.command_line import run  # not before: it takes seconds

        run()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(STOPPED)
