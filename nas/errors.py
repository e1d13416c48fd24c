"""The errors a user may meet, and the exit code each one ends the command with.

    NasError                             (search_spaces.errors)
    |-- ParityError                      1  (nas.export.parity) an export does not compute what its source does
    |-- InvalidInputError                2  also a ValueError: an argument, file, checkpoint or corpus breaks a law
    |-- InfeasibleBudgetError            3  no architecture of the space meets the budget
    |-- DeviceNotAvailableError          4  also a LookupError: the named device is not here
    `-- InconclusiveMeasurementError     5  the budget cannot be decided from what was measured

Exit code 0 is done, 1 a failure nobody foresaw or that is ours, 130 interrupted by the user.
"""

from search_spaces.errors import InvalidInputError, NasError, unknown_name

__all__ = [
    "EXIT_INTERRUPTED",
    "DeviceNotAvailableError",
    "InconclusiveMeasurementError",
    "InfeasibleBudgetError",
    "InvalidInputError",
    "NasError",
    "unknown_name",
]

EXIT_INTERRUPTED = 130


class InfeasibleBudgetError(NasError):
    """No architecture of the space meets the budget; the text names the closest one and its miss."""

    exit_code = 3


class DeviceNotAvailableError(NasError, LookupError):
    """The named device is not here; the text lists the known ones and how to add one."""

    exit_code = 4


class InconclusiveMeasurementError(NasError):
    """The measurement is too noisy to decide the budget, after retries."""

    exit_code = 5
