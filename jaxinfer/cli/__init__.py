"""The `jaxinfer` command: what is typed, and what is printed; the work is the library's."""
