"""The checks of `runtime doctor`."""
