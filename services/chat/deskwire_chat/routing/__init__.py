"""Which agent gets which work item. The rule is in `policy`; the other modules keep the state that it reads."""
