"""python -m services.gateway"""

import gc

gc.disable()  # what imports make is no garbage: looking for some there costs a tenth of the start

from services.gateway.main import main  # noqa: E402

gc.freeze()
gc.enable()

if __name__ == "__main__":
    main()
