"""Comity's five services and the chassis they stand on."""
