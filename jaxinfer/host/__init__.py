"""The host: input of users and files, checked once, and the process and signals of a command."""
