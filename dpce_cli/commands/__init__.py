"""One module a subcommand: parse, build the configuration, call the core once, print."""
