"""The command `kiln`: one module for each subcommand, imported when it is called.

Whatever a command or script imports first, the variables of GDAL and PROJ are left out before rasterio and pyproj.
"""

from kiln.io.gdal_variables import leave_out_foreign

LEFT_OUT = leave_out_foreign()
