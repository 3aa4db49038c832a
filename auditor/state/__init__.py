"""Everything an audit may disturb, and how it is put back."""
