"""``python -m iommukit``."""

from iommukit.cli.main import main

if __name__ == "__main__":
    main()
