"""`python -m kiln`: the command `kiln`, from a checkout that is not installed."""

from kiln.cli.main import main

if __name__ == "__main__":
    main()
