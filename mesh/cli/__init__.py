"""The `mesh` command. Each subcommand is a module of its own, imported only when it is called."""
