"""The command `jaxtrain`, and `python -m jaxtrain`: hears signals first, then imports all that it needs."""

from jaxtrain.cluster.stop import signals_of_command


def main() -> None:
    """Run the command line."""
    with signals_of_command() as stop:
        stop.importing = True
        from jaxtrain.cli.main import main as command

        command()


if __name__ == "__main__":
    main()
