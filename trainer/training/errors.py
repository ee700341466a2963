"""What the person who submitted the job can mend."""


class UserError(ValueError):
    """One clear sentence that names the setting at fault."""
