"""The operator's console: several cameras, a trigger, a cut around the contact, a decision, an audit log, a page."""
