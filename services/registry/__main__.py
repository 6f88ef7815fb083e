"""python -m services.registry"""

import sys

from setproctitle import setproctitle

from services.registry.main import main
from shared.settings import SettingsError, die, load_settings

if __name__ == "__main__":
    setproctitle("llmos: registry")
    try:
        sys.exit(main(load_settings()))
    except SettingsError as error:
        die(error)
