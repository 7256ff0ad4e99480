"""`python -m workflows`: the same as `sensorium`."""

from workflows.cli import main

if __name__ == "__main__":
    main()
