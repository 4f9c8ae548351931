"""The services that are deployed on edge nodes."""
