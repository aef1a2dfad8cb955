"""What different convolutions do: README.md is the page, metrics.csv every epoch of every run."""
