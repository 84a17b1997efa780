"""`python -m dpce_cli`."""

from dpce_cli.app import main

main()
