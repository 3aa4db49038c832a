"""Driving a user's training: one interface, one implementation per form of target."""
