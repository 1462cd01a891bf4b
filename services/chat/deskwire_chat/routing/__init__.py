"""Which agent gets which work item. The rule is in `policy`; the rest keeps what the rule asks about."""
