"""Why a job ends that has nothing wrong inside: one sentence each, and no traceback."""


class KnownError(Exception):
    """Known to rank 0 alone, it ends the other processes too: see World.on_rank_zero."""


class UserError(KnownError, ValueError):
    """What the person who submitted the job can mend. The sentence names the setting at fault."""


class SupersededError(KnownError):
    """The run belongs to another submission now. To start again would not change that."""
