// ExportNBD
