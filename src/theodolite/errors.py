"""The error tree: every error says what was expected, what was found and what to do.

::

    TheodoliteError
    ├── ProblemError (ValueError)          the problem is not well posed
    │   ├── DataError                      its batches cannot be surveyed
    │   │   └── NotDeterministicError      its loss changes between two passes
    │   ├── ParameterError                 its parameters cannot be selected
    │   └── NonFiniteError                 its loss, gradient or product is not finite
    ├── DerivativeError (RuntimeError)     a derivative is missing or wrong
    ├── RankError (RuntimeError)           processes of one run disagree or are lost
    ├── OperatorError (ValueError)         an operator was asked for what it does not have
    ├── LogError (OSError)                 a run log cannot be written or read
    │   └── LogInUseError                  another process writes to it
    └── CheckpointError (ValueError)       a checkpoint does not fit the model
    TheodoliteWarning (UserWarning)
    ├── NotConvergedWarning                an iteration stopped before its tolerance
    └── CostWarning                        a choice makes the call much more expensive
"""


class TheodoliteError(Exception):
    """Root of all errors raised by theodolite."""


class ProblemError(TheodoliteError, ValueError):
    """The problem is not well posed."""


class DataError(ProblemError):
    """The batches of a problem cannot be surveyed."""


class NotDeterministicError(DataError):
    """The loss of a problem changes between two passes over the same data."""


class ParameterError(ProblemError):
    """The parameters of a problem cannot be selected."""


class NonFiniteError(ProblemError):
    """A loss, gradient or product is not finite."""


class DerivativeError(TheodoliteError, RuntimeError):
    """A derivative is missing, or disagrees with finite differences."""


class RankError(TheodoliteError, RuntimeError):
    """The processes of a data-parallel run disagree, or one of them is lost."""


class OperatorError(TheodoliteError, ValueError):
    """An operator was asked for something it does not have."""


class LogError(TheodoliteError, OSError):
    """A run log cannot be written or read."""


class LogInUseError(LogError):
    """Another process writes to the run log."""


class CheckpointError(TheodoliteError, ValueError):
    """A checkpoint does not fit the model."""


class TheodoliteWarning(UserWarning):
    """Root of all warnings issued by theodolite."""


class NotConvergedWarning(TheodoliteWarning):
    """An iteration stopped before it reached its tolerance."""


class CostWarning(TheodoliteWarning):
    """A choice makes the call much more expensive than it needs to be."""
