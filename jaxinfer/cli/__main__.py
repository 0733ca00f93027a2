"""The entry of the `jaxinfer` command, and of `python -m jaxinfer.cli`."""

from jaxinfer.host import interrupts

interrupts.listen()  # before what takes its time to import

from jaxinfer.cli.commands import main  # noqa: E402  (interrupts.listen comes first)

if __name__ == "__main__":
    main()
