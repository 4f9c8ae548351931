"""The event types that edge and core share: types and versions, no logic."""
