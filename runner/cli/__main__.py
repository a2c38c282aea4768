"""`python -m runner.cli`: the same as `runner`."""

from runner.cli import main

if __name__ == "__main__":
    main()
