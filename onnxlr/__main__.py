"""`python -m onnxlr`."""

from onnxlr.cli import main

if __name__ == "__main__":
    main()
