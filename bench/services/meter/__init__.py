"""An edge service that takes readings over HTTP."""
