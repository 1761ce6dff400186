"""`python -m ram_tune.data check`: is the dataset whole, and what is in it?"""

from ram_tune.data.check import main
from ram_tune.errors import command_line

if __name__ == "__main__":
    command_line(main)
