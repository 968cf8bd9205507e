"""Who does the work: shares of this machine, helper processes, a Dask cluster."""
