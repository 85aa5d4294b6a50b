"""`python -m memoir_fast`: the command line."""

from memoir_fast.cli.app import main

if __name__ == "__main__":
    main()
