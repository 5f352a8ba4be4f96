"""`python -m lineside`, which is how `torchrun -m lineside` starts it."""

from lineside.cli import main

if __name__ == "__main__":
    main()
