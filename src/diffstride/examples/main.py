"""The training command: trains a network by a Gin configuration.

python3 -m diffstride.examples.main --gin_config=cifar10.gin \
    --gin_bindings="train.workdir = 'runs/resnet18'"
"""

import sys

from diffstride.cli import published_main

if __name__ == "__main__":
    sys.exit(published_main())
