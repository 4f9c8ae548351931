"""Sagas (process managers): work over several services, step by step, undone in reverse where it cannot be finished."""

from forebay.saga.declaration import Saga, compensates, moves, starts, times_out
from forebay.saga.instances import Instance, Status
from forebay.saga.moving import Sagas
from forebay.saga.step import Step

__all__ = ["Instance", "Saga", "Sagas", "Status", "Step", "compensates", "moves", "starts", "times_out"]
