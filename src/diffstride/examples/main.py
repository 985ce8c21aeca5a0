"""The training command: trains a network by a Gin configuration.

python3 -m diffstride.examples.main --gin_config=cifar10.gin \
    --gin_bindings="train.workdir = 'runs/resnet18'"
"""

from diffstride.training.command_line import run

if __name__ == "__main__":
    run()
